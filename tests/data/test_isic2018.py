"""ISIC 2018 as the page of the challenge describes its files, in small."""

import logging
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.isic2018 import Isic2018
from vantage.data.segmentation_augment import SegmentationAugment

from .writers import picture

SIZES = ((40, 60), (51, 33), (36, 36), (64, 47))


def inputs(root, part="Training"):
    return root / f"ISIC2018_Task1-2_{part}_Input"


def truths(root, part="Training"):
    return root / f"ISIC2018_Task1_{part}_GroundTruth"


def lesion(height, width):
    """An ellipse off the centre, bool (H, W)."""
    y, x = np.mgrid[:height, :width]
    return ((y - 0.4 * height) / (0.3 * height)) ** 2 + ((x - 0.6 * width) / (0.25 * width)) ** 2 < 1


def write(root, part="Training", count=8, first=0):
    rng = np.random.default_rng(first)
    for folder in (inputs(root, part), truths(root, part)):
        folder.mkdir(parents=True)
        for name in ("ATTRIBUTION.txt", "LICENSE.txt"):
            (folder / name).write_text("CC\n")
    for i in range(first, first + count):
        height, width = SIZES[i % len(SIZES)]
        picture(rng, height, width).save(inputs(root, part) / f"ISIC_{i:07d}.jpg")
        drawn = Image.fromarray(lesion(height, width).astype(np.uint8) * 255)
        drawn.save(truths(root, part) / f"ISIC_{i:07d}_segmentation.png")
    return root


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / "isic")


def make(root, **options):
    options = {"image_size": 32, "num_workers": 0, "augment": SegmentationAugment()} | options
    data = Isic2018(root=str(root), **options)
    data.setup()
    return data


def names(data):
    return {split: list(dataset.names) for split, dataset in data.datasets.items()}


def test_samples_are_what_the_files_say(root):
    write(root, "Test", count=3, first=100)
    data = make(root)
    assert data.info.class_names == ["background", "lesion"]
    assert Isic2018.num_classes == data.info.num_classes == 2
    for sample, (height, width) in zip([s for batch in data.test_dataloader() for s in batch], SIZES):
        assert sample["size"] == (height, width)
        assert sample["mask"].dtype == torch.uint8
        assert np.array_equal(sample["mask"].numpy(), lesion(height, width))
        shown = data.info.denormalize(sample["image"]).permute(1, 2, 0).numpy() * 255
        stored = np.asarray(Image.open(inputs(root, "Test") / f"{sample['name']}.jpg"))
        assert np.abs(shown - stored).max() < 1e-2


def test_the_three_parts_are_the_three_splits(root):
    write(root, "Validation", count=2, first=50)
    write(root, "Test", count=3, first=100)
    assert names(make(root)) == {
        "train": [f"ISIC_{i:07d}" for i in range(8)],
        "val": ["ISIC_0000050", "ISIC_0000051"],
        "test": ["ISIC_0000100", "ISIC_0000101", "ISIC_0000102"],
    }


def test_validation_is_cut_where_there_is_none(root, caplog):
    found = names(make(root, val_fraction=0.25))
    assert {split: len(part) for split, part in found.items()} == {"train": 6, "val": 2}
    assert sorted(found["train"] + found["val"]) == [f"ISIC_{i:07d}" for i in range(8)]
    assert "has no test split: nothing can be tested" in caplog.text


def test_pictures_whose_outlines_were_not_downloaded_are_not_used(root, caplog):
    write(root, "Validation", count=2, first=50)
    for file in truths(root, "Validation").iterdir():
        file.unlink()
    truths(root, "Validation").rmdir()
    with caplog.at_level(logging.WARNING):
        found = names(make(root, val_fraction=0.25))
    assert len(found["train"]) == 6
    assert f"{inputs(root, 'Validation')} is not used: there is no folder {truths(root, 'Validation')}" in caplog.text


def test_pictures_are_resized_and_evaluated_masks_are_not(root):
    data = make(root, val_fraction=0.5, resize=24, image_size=(24, 20))
    for sample in (s for batch in data.val_dataloader() for s in batch):
        height, width = sample["mask"].shape
        assert (height, width) in SIZES
        assert min(sample["image"].shape[1:]) == 24
        assert sample["image"].shape[1] * width == pytest.approx(sample["image"].shape[2] * height, rel=0.03)
    batch = next(iter(make(root, resize=24, image_size=(24, 20), batch_size=3).train_dataloader()))
    assert {(*sample["image"].shape, *sample["mask"].shape) for sample in batch} == {(3, 24, 20, 24, 20)}


@pytest.mark.parametrize("mode", ["1", "0/1", "P"])
def test_black_and_white_in_other_modes(root, mode):
    shape = SIZES[0]
    path = truths(root) / "ISIC_0000000_segmentation.png"
    black_or_white = Image.fromarray(lesion(*shape).astype(np.uint8) * (1 if mode == "0/1" else 255))
    (black_or_white if mode == "0/1" else black_or_white.convert(mode)).save(path)
    data = make(root, val_fraction=0.0)
    assert np.array_equal(data.datasets["train"].raw(0)["mask"].numpy(), lesion(*shape))


def test_a_split_can_be_sent_to_a_worker(root):
    split = pickle.loads(pickle.dumps(make(root).scan("train")))
    assert np.array_equal(split.read_mask(split.masks[0]).numpy(), lesion(*SIZES[0]))


def spoil(root, what):
    """Spoils the first training sample -> the sentence for it."""
    image = inputs(root) / "ISIC_0000000.jpg"
    mask = truths(root) / "ISIC_0000000_segmentation.png"
    if what == "no mask":
        mask.unlink()
        return f"{image}: has no mask {mask.with_suffix('')}.* ("
    if what == "no picture":
        image.unlink()
        return f"{mask}: is a mask without a picture in {inputs(root)}"
    if what == "smoothed":
        Image.open(mask).resize((30, 20), Image.Resampling.BILINEAR).resize((60, 40)).save(mask)
        return f"{mask}: holds the label "
    if what == "coloured":
        Image.open(mask).convert("RGB").save(mask)
        return f"{mask}: is a picture of mode RGB, but a mask holds one class index per pixel"
    if what == "another size":
        Image.open(mask).crop((0, 0, 59, 40)).save(mask)
        return f"{image}: is 60x40 and its mask {mask} is 59x40 (width x height)"
    image.write_bytes(image.read_bytes()[:100])
    return f"{image}: cannot be decoded ("


BAD = ["no mask", "no picture", "smoothed", "coloured", "another size", "truncated"]


@pytest.mark.parametrize("what", BAD)
def test_a_bad_sample_is_refused_or_skipped(root, what, caplog):
    sentence = spoil(root, what)
    with pytest.raises(DataError) as caught:
        make(root, val_fraction=0.0)
    assert str(caught.value).startswith(sentence)
    assert str(caught.value).endswith("; data.on_bad_sample=skip leaves such samples out")
    data = make(root, val_fraction=0.0, on_bad_sample="skip")
    assert len(data.datasets["train"]) == 7
    assert sentence in caplog.text


def test_missing_folders_are_named(root, tmp_path):
    with pytest.raises(DataNotFoundError, match=r"there is no folder .*nowhere .*ISIC2018_Task1-2_Training_Input/"):
        make(tmp_path / "nowhere")
    with pytest.raises(DataNotFoundError, match=r"there is no folder .*Training_Input; pictures are expected in it"):
        make(tmp_path)
    inputs(tmp_path).mkdir()
    with pytest.raises(DataNotFoundError, match=r"there is no folder .*Training_GroundTruth; masks are expected in it"):
        make(tmp_path)
    truths(tmp_path).mkdir()
    with pytest.raises(DataError, match=r"holds no picture with a mask; expected below .*ISIC2018_Task1-2_Training"):
        make(tmp_path)
