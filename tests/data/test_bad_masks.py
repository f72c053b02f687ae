"""Pictures and masks that cannot be used: each in one sentence, or skipped and counted."""

import shutil

import numpy as np
import pytest
from PIL import Image

from vantage.data.errors import DataError
from vantage.data.mask_folder import MaskFolder
from vantage.data.segmentation_augment import SegmentationAugment

from .segmentation_files import samples, write_mask_folder, write_pair


@pytest.fixture
def root(tmp_path):
    write_mask_folder(tmp_path, {"train": 6, "val": 2, "test": 2})
    return tmp_path


def make(root, **options):
    options = {"image_size": 32, "batch_size": 3, "num_workers": 0, "augment": SegmentationAugment()} | options
    data = MaskFolder(root=str(root), **options)
    data.setup()
    return data


def replace(path, values):
    Image.fromarray(np.asarray(values)).save(path)


def spoil(root, what):
    """Spoils a training sample -> the sentence for it."""
    image, mask = root / "train/images/train_02.png", root / "train/masks/train_02.png"
    if what == "no mask":
        mask.unlink()
        return f"{image}: has no mask {mask.with_suffix('')}.* ("
    if what == "no picture":
        image.unlink()
        return f"{mask}: is a mask without a picture in {image.parent}"
    if what == "two masks":
        shutil.copy(mask, mask.with_suffix(".bmp"))
        return f"{mask.with_suffix('.bmp')}: has the same name as {mask}, and {image} has one mask"
    if what == "another size":
        replace(mask, np.zeros((48, 60), dtype=np.uint8))
        return (
            f"{image}: is 64x48 and its mask {mask} is 60x48 (width x height); a mask has a value for every pixel of "
            "its picture"
        )
    if what == "unknown label":
        values = np.zeros((48, 64), dtype=np.uint8)
        values[40, 5] = 77
        replace(mask, values)
        return f"{mask}: holds the label 77, first at pixel (x=5, y=40), which is none of 0..2 and not ignored (255); "
    if what == "colours":
        replace(mask, np.zeros((48, 64, 3), dtype=np.uint8))
        return f"{mask}: is a picture of mode RGB, but a mask holds one class index per pixel (modes L, P); "
    path = image if what == "half a picture" else mask
    path.write_bytes(path.read_bytes()[:80])
    return f"{path}: cannot be decoded ("


FOUND_BY_NAME = ["no mask", "no picture", "two masks"]
BAD = [*FOUND_BY_NAME, "another size", "unknown label", "colours", "half a picture", "half a mask"]


@pytest.mark.parametrize("what", BAD)
def test_a_bad_sample_is_refused_with_file_value_and_reason(root, what):
    sentence = spoil(root, what)
    with pytest.raises(DataError) as caught:
        make(root)
    assert str(caught.value).startswith(sentence)
    assert str(caught.value).endswith("; data.on_bad_sample=skip leaves such samples out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", BAD)
def test_bad_samples_can_be_skipped_and_are_counted(root, what, caplog):
    sentence = spoil(root, what)
    data = make(root, on_bad_sample="skip", drop_last=False)
    assert caplog.text.count(f"skipped {sentence}") == 1
    counted = "have no partner and were skipped" if what in FOUND_BY_NAME else "1 of 6 train pictures are bad"
    assert counted in caplog.text
    assert len(data.datasets["train"]) == 5
    assert sorted(samples(data.train_dataloader())) == [f"train_{i:02d}" for i in (0, 1, 3, 4, 5)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("what", [what for what in BAD if what not in FOUND_BY_NAME])
def test_files_found_bad_while_training_are_refused_or_skipped_too(root, what, workers, caplog):
    sentence = spoil(root, what)
    with pytest.raises(DataError) as caught:
        list(make(root, cache=False, num_workers=workers).train_dataloader())
    assert str(caught.value).startswith(sentence)
    assert str(caught.value).endswith("; data.on_bad_sample=skip leaves such files out")
    data = make(root, cache=False, num_workers=workers, on_bad_sample="skip", drop_last=False)
    assert sorted(samples(data.train_dataloader())) == [f"train_{i:02d}" for i in (0, 1, 3, 4, 5)]
    assert "1 of 6 samples are bad and were skipped: train_02" in caplog.text


def test_several_bad_samples_are_counted_in_one_sentence(root):
    for i in (1, 2, 4):
        replace(root / f"train/masks/train_{i:02d}.png", np.full((48, 64), 9 + i, dtype=np.uint8))
    with pytest.raises(DataError, match=r"train_01.png: holds the label 10, .* \(and 2 more\); data.on_bad_sample"):
        make(root)


def test_an_empty_split_is_refused(root):
    for path in (root / "val").rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError) as caught:
        make(root)
    assert str(caught.value) == (
        f"{root / 'val'} holds no picture with a mask; expected below {root}: classes.txt, train/images/, train/masks/ "
        "and, where they exist, the same below val/ and test/"
    )


@pytest.mark.parametrize("what", ["no mask", "unknown label"])
def test_a_split_of_bad_samples_only_is_refused_even_if_they_are_skipped(root, what):
    shutil.rmtree(root / "val")
    write_pair(root / "val/images/train_02.png", root / "val/masks/train_02.png", np.zeros((8, 8), dtype=np.uint8))
    if what == "no mask":
        (root / "val/masks/train_02.png").unlink()
    else:
        replace(root / "val/masks/train_02.png", np.full((8, 8), 7, dtype=np.uint8))
    with pytest.raises(DataError, match=r"val holds no picture with a mask|the val split has no picture left"):
        make(root, on_bad_sample="skip")
