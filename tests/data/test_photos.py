"""The photographs of scikit-image and scikit-learn: which, how they are made, and that they are no benchmark."""

import numpy as np
import pytest
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_image

from vantage.data.errors import DataError
from vantage.data.photos import SPLITS, Photos, place

from .super_resolution_files import reduced, samples, shown, target

TRAIN = ["coffee", "chelsea", "flower", "brick", "grass", "gravel", "retina"]
EVALUATED = ["astronaut", "china", "motorcycle_left"]


def opened(stage="fit", **options):
    data = Photos(**{"num_workers": 0} | options)
    data.setup(stage)
    return data


def halved(pixels):
    """(H, W, C) uint8: means of 2x2, halves up."""
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    means = pixels[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3).astype(int).sum((1, 3)) / 4
    return np.floor(means + 0.5).astype(np.uint8)


def test_all_lie_in_the_wheels():
    """Nothing is downloaded: scikit-image fetches what is not there."""
    for files in SPLITS.values():
        assert all(place(file).is_file() for file in files)


def test_splits_and_what_is_said(caplog):
    caplog.set_level("INFO")
    data = opened()
    assert {split: dataset.names for split, dataset in data.datasets.items()} == {
        "train": TRAIN,
        "val": EVALUATED,
        "test": EVALUATED,
    }
    assert "smoke-test photographs: numbers on them are no benchmark" in caplog.text
    assert {sample["set"] for (sample,) in data.test_dataloader()} == {"val"}


def test_evaluation_pictures_are_halved_and_reduced():
    data = opened("validate")
    found = samples(data.val_dataloader())
    originals = {"astronaut": skimage.data.astronaut(), "china": load_sample_image("china.jpg")}
    for name, original in originals.items():
        high = halved(original)
        high = high[: high.shape[0] // 2 * 2, : high.shape[1] // 2 * 2]
        assert np.array_equal(target(found[name]), high)
        assert np.array_equal(shown(data, found[name]), reduced(high, 2))
    assert found["motorcycle_left"]["target"].shape == (3, 250, 370)


def test_grey_pictures_have_three_equal_channels():
    pairs = opened().datasets["train"].pairs
    brick = pairs.read(TRAIN.index("brick"))[1]
    expected = halved(np.repeat(np.asarray(Image.open(place("brick.png")))[..., None], 3, 2))
    assert np.array_equal(brick.permute(1, 2, 0).numpy(), expected)
    assert opened(in_chans=1).datasets["train"].pairs.read(0)[1].shape == (1, 200, 300)


def test_an_epoch_takes_each_so_often_as_repeat_says():
    batches = list(opened(repeat=16).train_dataloader())
    assert len(batches) == 7 * 16 // 16
    assert {len(batch) for batch in batches} == {16}
    names = [sample["name"] for batch in batches for sample in batch]
    assert {names.count(name) for name in TRAIN} == {16}


def test_pictures_smaller_than_a_patch_are_left_out_of_training(caplog):
    caplog.set_level("INFO")
    data = opened(scale=4)
    assert data.datasets["train"].names == [name for name in TRAIN if name != "chelsea"]
    assert data.datasets["val"].names == EVALUATED
    assert "chelsea: left out, smaller than a patch of 192x192" in caplog.text
    assert opened(scale=8).datasets["train"].names == ["retina"]
    with pytest.raises(DataError, match=r"coffee: is 300x200, and a patch of data.image_size=96x96 at data.scale=8"):
        opened(scale=8, image_size=96)


def test_they_have_no_lr_files():
    with pytest.raises(DataError, match=r"data.lr=files, and the photographs have no LR files; use data.lr=make"):
        opened(lr="files")
