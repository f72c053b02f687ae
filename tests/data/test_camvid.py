import shutil

import numpy as np
import pytest
from PIL import Image

from vantage.data.camvid import CamVid
from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.segmentation_augment import SegmentationAugment

from .segmentation_files import write_camvid


def make(root, stage=None, **options):
    options = {"image_size": 24, "batch_size": 2, "num_workers": 0, "augment": SegmentationAugment()} | options
    data = CamVid(root=str(root), **options)
    data.setup(stage)
    return data


def masks_of(loader):
    return {sample["name"]: sample["mask"].numpy() for batch in loader for sample in batch}


def test_void_is_ignored_and_the_rest_are_the_classes(tmp_path):
    written = write_camvid(tmp_path, {"train": 4, "val": 2, "test": 3})
    data = make(tmp_path)
    assert data.info.num_classes == 11 == CamVid.num_classes
    assert data.info.class_names[8:10] == ["car", "pedestrian"]
    assert data.info.palette[0] == [128, 128, 128]
    assert {split: len(dataset) for split, dataset in data.datasets.items()} == {"train": 4, "val": 2, "test": 3}
    got = masks_of(data.test_dataloader())
    assert sorted(got) == sorted(written["test"])
    for name, values in written["test"].items():
        assert set(np.unique(values)) == set(range(12))
        assert np.array_equal(got[name], np.where(values == 11, 255, values))


def test_test_is_there_only_if_its_folder_is(tmp_path, caplog):
    write_camvid(tmp_path, {"train": 4, "val": 2})
    assert list(make(tmp_path).datasets) == ["train", "val"]
    assert f"{tmp_path} has no test split: nothing can be tested" in caplog.text
    shutil.rmtree(tmp_path / "val")
    data = make(tmp_path, val_fraction=0.25)
    assert {split: len(dataset) for split, dataset in data.datasets.items()} == {"train": 3, "val": 1}


def test_pictures_of_another_format_than_their_masks(tmp_path):
    write_camvid(tmp_path, {"train": 2, "val": 2})
    for path in list((tmp_path / "val").glob("*.png")):
        Image.open(path).save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    assert len(make(tmp_path).datasets["val"]) == 2


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(
        DataNotFoundError, match=r"there is no folder .*nowhere .*; expected in it: train/, trainannot/"
    ):
        make(tmp_path / "nowhere")
    with pytest.raises(DataNotFoundError, match=r"there is no folder .*/train; pictures .*; expected below .*: train/"):
        make(tmp_path)
    write_camvid(tmp_path, {"train": 2, "val": 1})
    path = tmp_path / "valannot" / "0016E5_00000.png"
    Image.fromarray(np.full((36, 48), 12, dtype=np.uint8)).save(path)
    with pytest.raises(DataError, match=r"00000.png: holds the label 12, .* none of 0..10 and not ignored \(11, 255\)"):
        make(tmp_path)
    shutil.rmtree(tmp_path / "valannot")
    with pytest.raises(DataNotFoundError, match=r"there is no folder .*/valannot; masks are expected in it"):
        make(tmp_path)
