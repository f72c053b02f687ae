import shutil

import numpy as np
import pytest
from PIL import Image

from vantage.data.cityscapes import CLASSES, Cityscapes
from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.segmentation_augment import SegmentationAugment

from .segmentation_files import samples, write_cityscapes

CITIES = {"train": {"aachen": 2, "bochum": 1}, "val": {"munster": 2}}
# labelId -> trainId, as the toolkit's helpers/labels.py lists them; the others are 255
TRAIN_ID = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14}
TRAIN_ID |= {28: 15, 31: 16, 32: 17, 33: 18}


def make(root, stage=None, **options):
    options = {"image_size": [32, 48], "batch_size": 2, "num_workers": 0, "augment": SegmentationAugment()} | options
    data = Cityscapes(root=str(root), **({"val_fraction": 0.0} | options))
    data.setup(stage)
    return data


def test_label_ids_as_downloaded_become_the_19_classes(tmp_path):
    written = write_cityscapes(tmp_path, CITIES)
    data = make(tmp_path)
    assert data.info.class_names == list(CLASSES)
    assert data.info.num_classes == 19
    assert data.info.palette[13] == [0, 0, 142]  # car
    assert {split: len(dataset) for split, dataset in data.datasets.items()} == {"train": 3, "val": 2, "test": 2}
    got = samples(data.val_dataloader())
    assert sorted(got) == [f"munster/munster_{i:06d}_000019_leftImg8bit" for i in (0, 1)]
    for name, sample in got.items():
        values = written["val"][name]
        assert set(np.unique(values)) == set(range(34))
        assert np.array_equal(sample["mask"].numpy(), np.vectorize(lambda v: TRAIN_ID.get(v, 255))(values))
        assert sample["image"].shape == (3, 48, 96)
    assert next(iter(data.train_dataloader()))[0]["mask"].shape == (32, 48)


def test_train_ids_are_taken_as_they_are_and_before_label_ids(tmp_path):
    write_cityscapes(tmp_path, CITIES)
    written = write_cityscapes(tmp_path, CITIES, "labelTrainIds", [*range(19), 255])
    for name, sample in samples(make(tmp_path).val_dataloader()).items():
        assert np.array_equal(sample["mask"].numpy(), written["val"][name])


def test_each_file_is_read_by_the_encoding_of_its_name(tmp_path):
    write_cityscapes(tmp_path, CITIES, values=[26])
    write_cityscapes(tmp_path, {"val": {"munster": 1}}, "labelTrainIds", [13])
    got = samples(make(tmp_path).val_dataloader())
    assert [sample["mask"].unique().tolist() for sample in got.values()] == [[13], [13]]


def test_labels_of_test_are_not_looked_at(tmp_path):
    write_cityscapes(tmp_path, CITIES | {"test": {"berlin": 2}}, values=[0])
    assert all("munster" in name for name in make(tmp_path).datasets["test"].names)


def test_a_fraction_cuts_whole_cities(tmp_path):
    write_cityscapes(tmp_path, {"train": {f"city{i}": 1 + i % 3 for i in range(10)}, "val": {"munster": 1}})
    data = make(tmp_path, val_fraction=0.3)
    cities = {split: {name.split("/")[0] for name in dataset.names} for split, dataset in data.datasets.items()}
    assert {split: len(found) for split, found in cities.items()} == {"train": 7, "val": 3, "test": 1}
    assert not cities["train"] & cities["val"]
    assert sum(len(data.datasets[split]) for split in ("train", "val")) == 19


def test_what_is_wrong_is_said(tmp_path):
    write_cityscapes(tmp_path, CITIES)
    path = tmp_path / "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
    Image.fromarray(np.full((48, 96), 34, dtype=np.uint8)).save(path)
    with pytest.raises(
        DataError, match=r"aachen_000000.*labelIds.png: holds the label 34, first at pixel \(x=0, y=0\)"
    ):
        make(tmp_path)
    # label ids under the name of train ids
    shutil.copy(tmp_path / "gtFine/train/aachen/aachen_000001_000019_gtFine_labelIds.png", path)
    shutil.copy(path, path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    with pytest.raises(
        DataError, match=r"labelTrainIds.png: holds the label \d+, .* none of 0..18 and not ignored \(255"
    ):
        make(tmp_path)
    for file in path.parent.glob("aachen_000000*label*"):
        file.unlink()
    with pytest.raises(DataError, match=r"000000_000019_leftImg8bit.png: has no mask .*_gtFine_labelIds.\* \("):
        make(tmp_path)
    data = make(tmp_path, on_bad_sample="skip")
    assert len(data.datasets["train"]) == 2
    shutil.rmtree(tmp_path / "gtFine")
    with pytest.raises(
        DataNotFoundError, match=r"no folder .*/gtFine/train; masks .*; expected below .*: leftImg8bit/"
    ):
        make(tmp_path)
