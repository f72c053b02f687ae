import shutil

import numpy as np
import pytest
from PIL import Image

from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.segmentation_augment import SegmentationAugment
from vantage.data.voc2012 import CLASSES, Voc2012

from .segmentation_files import samples, voc_colours, write_voc

TRAIN, VAL, AUG = ["2007_000032", "2007_000039", "2008_000003"], ["2007_000033", "2007_000042"], ["2008_000008"]


def make(root, stage=None, **options):
    options = {"image_size": 32, "batch_size": 2, "num_workers": 0, "augment": SegmentationAugment()} | options
    data = Voc2012(root=str(root), **options)
    data.setup(stage)
    return data


def write_list(root, name, lines):
    (root / "ImageSets" / "Segmentation" / name).write_text("".join(f"{line}\n" for line in lines))


def test_the_colours_are_those_of_the_palette():
    assert list(CLASSES.values()) == voc_colours()[:21]
    assert Voc2012.num_classes == 21


@pytest.mark.parametrize("folder", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_palette_indices_are_the_classes_and_rims_are_ignored(tmp_path, folder):
    written = write_voc(tmp_path / folder, TRAIN, VAL)
    assert Image.open(tmp_path / folder / "SegmentationClass" / f"{VAL[0]}.png").mode == "P"
    data = make(tmp_path)
    assert data.info.class_names[15] == "person"
    assert {split: dataset.names for split, dataset in data.datasets.items()} == {
        "train": TRAIN,
        "val": VAL,
        "test": VAL,
    }
    for name, sample in samples(data.val_dataloader()).items():
        assert set(np.unique(written[name])) == {*range(21), 255}
        assert np.array_equal(sample["mask"].numpy(), written[name])


LISTS = {
    "trainaug.txt": [*TRAIN, *AUG],  # all of them
    "train_aug.txt": [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in [*TRAIN, *AUG]],
    "aug.txt": AUG,  # those that train.txt lacks
}


@pytest.mark.parametrize("name", LISTS)
def test_sbd_adds_pictures_in_whatever_form_its_list_is(tmp_path, name):
    written = write_voc(tmp_path, TRAIN, VAL, AUG)
    write_list(tmp_path, name, LISTS[name])
    # SBD has masks of some of VOC's pictures as well; VOC's own, with rims, are taken
    Image.fromarray(np.zeros((48, 64), dtype=np.uint8)).save(tmp_path / f"SegmentationClassAug/{TRAIN[0]}.png")
    assert make(tmp_path).datasets["train"].names == TRAIN
    data = make(tmp_path, train_set="aug", image_size=[48, 64], batch_size=4)
    assert sorted(data.datasets["train"].names) == sorted([*TRAIN, *AUG])
    for sample in samples(data.train_dataloader()).values():
        assert np.array_equal(sample["mask"].numpy(), written[sample["name"]])


def test_a_fraction_of_train_validates(tmp_path):
    write_voc(tmp_path, [f"2007_{i:06d}" for i in range(20)], VAL)
    data = make(tmp_path, val_fraction=0.1)
    assert {split: len(dataset) for split, dataset in data.datasets.items()} == {"train": 18, "val": 2, "test": 2}
    assert data.datasets["test"].names == VAL


def test_what_is_validated_is_not_trained_on(tmp_path):
    write_voc(tmp_path, TRAIN, VAL, AUG)
    write_list(tmp_path, "aug.txt", [*AUG, VAL[1]])
    with pytest.raises(
        DataError, match=rf"aug.txt: names '{VAL[1]}', which .*val.txt names too \(1 in both\), so that"
    ):
        make(tmp_path, train_set="aug")


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"there is no file .*/train.txt; expected below .*: JPEGImages/"):
        make(tmp_path)
    write_voc(tmp_path, TRAIN, VAL, AUG)
    with pytest.raises(DataError, match=r"data.train_set='trainval' is not train or aug"):
        make(tmp_path, train_set="trainval")
    with pytest.raises(
        DataNotFoundError, match=r"none of trainaug.txt, train_aug.txt, aug.txt in .*data.train_set=aug"
    ):
        make(tmp_path, train_set="aug")
    mask = tmp_path / "SegmentationClass" / f"{TRAIN[0]}.png"
    shutil.copy(mask, tmp_path / "kept.png")
    Image.open(mask).convert("RGB").save(mask)
    with pytest.raises(DataError, match=r"2007_000032.png: is a picture of mode RGB, but a mask holds one class index"):
        make(tmp_path)
    mask.unlink()
    with pytest.raises(
        DataError, match=r"JPEGImages/2007_000032.jpg: has no mask .*SegmentationClass/2007_000032.png; "
    ):
        make(tmp_path)
    shutil.copy(tmp_path / "kept.png", mask)
    (tmp_path / "JPEGImages" / f"{TRAIN[0]}.jpg").unlink()
    with pytest.raises(DataError, match=r"train.txt: names '2007_000032', but there is no picture .*2007_000032.jpg"):
        make(tmp_path)
    assert make(tmp_path, on_bad_sample="skip").datasets["train"].names == TRAIN[1:]
