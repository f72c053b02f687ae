"""ADE20K, and what is common to the data sets that are tested on their validation pictures."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from vantage.data.ade20k import CLASSES, Ade20k
from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.segmentation_augment import SegmentationAugment

from .segmentation_files import write_ade20k


def make(root, stage=None, **options):
    options = {"image_size": 32, "batch_size": 2, "num_workers": 0, "augment": SegmentationAugment()} | options
    data = Ade20k(root=str(root), **({"val_fraction": 0.0} | options))
    data.setup(stage)
    return data


def test_the_classes():
    names, colours = list(CLASSES), list(CLASSES.values())
    assert len(names) == 150 == Ade20k.num_classes
    # lines 1, 13, 97 and 150 of objectInfo150.txt
    assert [names[i - 1] for i in (1, 13, 97, 150)] == ["wall", "person", "escalator", "flag"]
    assert colours[0] == (120, 120, 120)
    assert colours[149] == (92, 0, 255)
    assert all(len(colour) == 3 and min(colour) >= 0 and max(colour) <= 255 for colour in colours)
    # the toolkit gives one colour twice
    assert len(set(colours)) == 149
    assert CLASSES["road"] == CLASSES["skyscraper"]


@pytest.mark.parametrize("folder", ["", "ADEChallengeData2016"])
def test_zero_is_ignored_and_the_labels_move_down(tmp_path, folder):
    written = write_ade20k(tmp_path / folder)
    data = make(tmp_path)
    assert {split: len(dataset) for split, dataset in data.datasets.items()} == {"train": 4, "val": 2, "test": 2}
    assert data.info.palette == [list(colour) for colour in CLASSES.values()]
    for batch in data.val_dataloader():
        for sample in batch:
            values = written["val"][sample["name"]].astype(int)
            assert np.array_equal(sample["mask"].numpy(), np.where(values == 0, 255, values - 1))
    assert sorted(data.datasets["train"].names) == [f"ADE_train_{i:08d}" for i in range(1, 5)]


def test_every_label_of_the_release_has_a_class(tmp_path):
    write_ade20k(tmp_path)
    every = np.arange(151, dtype=np.uint8)[None].repeat(2, 0)
    Image.fromarray(every).save(tmp_path / "annotations/validation/ADE_val_00000001.png")
    Image.new("RGB", (151, 2)).save(tmp_path / "images/validation/ADE_val_00000001.jpg")
    mask = make(tmp_path, "validate").datasets["val"][0]["mask"]
    assert mask[0].tolist() == [255, *range(150)]


def test_labels_of_the_full_ade20k_are_refused(tmp_path):
    write_ade20k(tmp_path)
    path = tmp_path / "annotations/training/ADE_train_00000003.png"
    Image.fromarray(np.full((48, 64), 151, dtype=np.uint8)).save(path)
    with pytest.raises(DataError) as caught:
        make(tmp_path)
    assert str(caught.value) == (
        f"{path}: holds the label 151, first at pixel (x=0, y=0), which is none of 1..150 and not ignored (0, 255); "
        "correct the file, or the list of classes; data.on_bad_sample=skip leaves such samples out"
    )


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"there is no folder .*nowhere .*; expected in it: images/training/"):
        make(tmp_path / "nowhere")
    with pytest.raises(
        DataNotFoundError, match=r"no folder .*/images/training; pictures .*; expected below .*: images/"
    ):
        make(tmp_path)
    write_ade20k(tmp_path)
    (tmp_path / "annotations/training/ADE_train_00000001.png").unlink()
    with pytest.raises(
        DataError, match=r"ADE_train_00000001.jpg: has no mask .*annotations/training/ADE_train_00000001"
    ):
        make(tmp_path)


# the official val pictures


def test_validation_pictures_validate_and_test_as_in_the_literature(tmp_path, caplog):
    write_ade20k(tmp_path)
    with caplog.at_level(logging.INFO):
        data = make(tmp_path)
    assert data.datasets["test"] is data.datasets["val"]
    tested = [sample for batch in data.test_dataloader() for sample in batch]
    assert [sample["name"] for sample in tested] == ["ADE_val_00000001", "ADE_val_00000002"]
    told = f"{tmp_path} has no labels for testing: the val pictures validate and test, as in the literature"
    assert caplog.text.count(told) == 1


def test_with_a_fraction_train_validates_and_they_only_test(tmp_path, caplog):
    write_ade20k(tmp_path, train=8)
    with caplog.at_level(logging.INFO):
        data = make(tmp_path, val_fraction=0.25)
    names = {split: set(dataset.names) for split, dataset in data.datasets.items()}
    assert {split: len(found) for split, found in names.items()} == {"train": 6, "val": 2, "test": 2}
    assert not names["train"] & names["val"]
    assert all(name.startswith("ADE_train_") for name in names["train"] | names["val"])
    assert all(name.startswith("ADE_val_") for name in names["test"])
    assert "validate and test" not in caplog.text
    assert make(tmp_path, "test", val_fraction=0.25).datasets["test"].names == data.datasets["test"].names


@pytest.mark.parametrize("stage", ["test", "validate"])
@pytest.mark.parametrize("cache", [True, False])
def test_a_stage_alone_gives_the_same_samples(tmp_path, stage, cache):
    write_ade20k(tmp_path)
    split = {"test": "test", "validate": "val"}[stage]
    alone, whole = make(tmp_path, stage, cache=cache).datasets[split], make(tmp_path).datasets[split]
    assert alone.names == whole.names
    for i in range(2):
        assert all(torch.equal(alone[i][key], whole[i][key]) for key in ("image", "mask"))


def test_without_validation_pictures(tmp_path, caplog):
    write_ade20k(tmp_path, train=8, val=0)
    assert list(make(tmp_path).datasets) == ["train"]
    assert "nothing is validated" in caplog.text
    assert "has no test split: nothing can be tested" in caplog.text
    assert list(make(tmp_path, val_fraction=0.25).datasets) == ["train", "val"]


def test_bad_files_of_validation_are_counted_once(tmp_path, caplog):
    write_ade20k(tmp_path)
    (tmp_path / "annotations/validation/ADE_val_00000001.png").unlink()
    data = make(tmp_path, on_bad_sample="skip")
    assert len(data.datasets["val"]) == len(data.datasets["test"]) == 1
    assert caplog.text.count("1 pictures or masks have no partner and were skipped") == 1
