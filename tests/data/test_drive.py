"""DRIVE: TIFF photographs, GIF drawings and GIF fields of view, in small."""

import logging
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from vantage.data.drive import Drive
from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.segmentation_augment import SegmentationAugment

from .writers import picture

HEIGHT, WIDTH = 58, 56


def vessels(number):
    """Crossing lines, also outside of the field of view; bool (H, W)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return ((y + x + number) % 17 < 2) | ((y - x) % 23 < 2)


def field(margin=4):
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return (y - HEIGHT / 2) ** 2 + (x - WIDTH / 2) ** 2 < (WIDTH / 2 - margin) ** 2


def black_and_white(shape):
    return Image.fromarray(shape.astype(np.uint8) * 255)


def write(root, part, numbers, drawn=True):
    rng = np.random.default_rng(0)
    name = {"training": "training", "test": "test"}[part]
    for folder in ("images", "1st_manual", "mask") if drawn else ("images", "mask"):
        (root / part / folder).mkdir(parents=True)
    for number in numbers:
        picture(rng, HEIGHT, WIDTH).save(root / part / "images" / f"{number:02d}_{name}.tif")
        if drawn:
            black_and_white(vessels(number)).save(root / part / "1st_manual" / f"{number:02d}_manual1.gif")
        black_and_white(field()).save(root / part / "mask" / f"{number:02d}_{name}_mask.gif")


@pytest.fixture
def root(tmp_path):
    write(tmp_path, "training", range(21, 31))
    write(tmp_path, "test", range(1, 4))
    (tmp_path / "test" / "2nd_manual").mkdir()
    black_and_white(vessels(9)).save(tmp_path / "test" / "2nd_manual" / "01_manual2.gif")
    return tmp_path


def make(root, **options):
    options = {"image_size": 32, "num_workers": 0, "augment": SegmentationAugment()} | options
    data = Drive(root=str(root), **options)
    data.setup()
    return data


def expected(number):
    return np.where(field(), vessels(number), 255)


def test_samples_are_what_the_files_say(root):
    data = make(root)
    assert data.info.class_names == ["background", "vessel"]
    samples = [sample for batch in data.test_dataloader() for sample in batch]
    assert [sample["name"] for sample in samples] == ["01_test", "02_test", "03_test"]
    for number, sample in enumerate(samples, 1):
        assert np.array_equal(sample["mask"].numpy(), expected(number))
        shown = data.info.denormalize(sample["image"]).permute(1, 2, 0).numpy() * 255
        stored = np.asarray(Image.open(root / "test" / "images" / f"{sample['name']}.tif"))
        assert np.abs(shown - stored).max() < 1e-2


def test_outside_the_field_of_view_is_ignored_in_training_too(root):
    data = make(root, val_fraction=0.0)
    names = data.datasets["train"].names
    assert names == [f"{number}_training" for number in range(21, 31)]
    for i, name in enumerate(names):
        assert np.array_equal(data.datasets["train"].raw(i)["mask"].numpy(), expected(int(name[:2])))
    samples = [sample for batch in data.train_dataloader() for sample in batch]
    assert {sample["mask"].shape for sample in samples} == {(32, 32)}
    assert set(torch.stack([sample["mask"] for sample in samples]).unique().tolist()) == {0, 1, 255}


def test_validation_is_cut_from_training(root):
    data = make(root, val_fraction=0.3)
    names = {split: set(dataset.names) for split, dataset in data.datasets.items()}
    assert {split: len(found) for split, found in names.items()} == {"train": 7, "val": 3, "test": 3}
    assert not names["train"] & names["val"]


@pytest.mark.parametrize("palette", [[0, 0, 0, 255, 255, 255], [255, 255, 255, 0, 0, 0]], ids=["01", "10"])
def test_the_colours_of_a_palette_count_and_not_its_indices(root, palette):
    for path, shape in (
        (root / "test" / "1st_manual" / "01_manual1.gif", vessels(1)),
        (root / "test" / "mask" / "01_test_mask.gif", field()),
    ):
        image = Image.fromarray((shape ^ (palette[0] == 255)).astype(np.uint8)).convert("P")
        image.putpalette(palette)
        assert np.array_equal(np.asarray(image.convert("L")) == 255, shape)
        image.save(path.with_suffix(".png"))
        path.unlink()
    assert np.array_equal(make(root).datasets["test"][0]["mask"].numpy(), expected(1))


@pytest.mark.parametrize("how", ["empty", "missing"])
def test_a_download_without_drawings_of_the_test_pictures(root, how, caplog):
    folder = root / "test" / "1st_manual"
    for path in folder.iterdir():
        path.unlink()
    if how == "missing":
        folder.rmdir()
    with caplog.at_level(logging.INFO):
        assert sorted(make(root).datasets) == ["train", "val"]
    assert f"{folder} has no drawings of vessels, which not every download has" in caplog.text
    assert "has no test split: nothing can be tested" in caplog.text


def test_a_split_can_be_sent_to_a_worker(root):
    split = pickle.loads(pickle.dumps(make(root).scan("test").select([2])))
    assert np.array_equal(split.read_mask(split.masks[0]).numpy(), expected(3))


def spoil(root, what):
    """Spoils the first training sample -> the sentence for it."""
    training = root / "training"
    image, drawn = training / "images" / "21_training.tif", training / "1st_manual" / "21_manual1.gif"
    inside = training / "mask" / "21_training_mask.gif"
    if what == "no field of view":
        inside.unlink()
        return f"{image}: has no field of view {inside.with_suffix('')}.* ("
    if what == "no drawing":
        drawn.unlink()
        return f"{image}: has no mask {drawn.with_suffix('')}.* ("
    if what == "no picture":
        image.unlink()
        return f"{drawn}: is a mask without a picture in {training / 'images'}"
    if what == "small field of view":
        black_and_white(field()[:, :-2]).save(inside)
        return f"{drawn}: is 56x58 and its field of view {inside} is 54x58"
    if what == "small both":
        black_and_white(field()[:-1]).save(inside)
        black_and_white(vessels(21)[:-1]).save(drawn)
        return f"{image}: is 56x58 and its mask 21_training is 56x57 (width x height)"
    inside.write_bytes(b"GIF89a")
    return f"{inside}: cannot be decoded ("


BAD = ["no field of view", "no drawing", "no picture", "small field of view", "small both", "broken field of view"]


@pytest.mark.parametrize("what", BAD)
def test_a_bad_sample_is_refused_or_skipped(root, what, caplog):
    sentence = spoil(root, what)
    with pytest.raises(DataError) as caught:
        make(root, val_fraction=0.0)
    assert str(caught.value).startswith(sentence)
    assert str(caught.value).endswith("; data.on_bad_sample=skip leaves such samples out")
    data = make(root, val_fraction=0.0, on_bad_sample="skip")
    assert data.datasets["train"].names == [f"{number}_training" for number in range(22, 31)]
    assert sentence in caplog.text


def test_missing_folders_are_named(root):
    (root / "training" / "mask").rename(root / "elsewhere")
    with pytest.raises(
        DataNotFoundError, match=r"there is no folder .*training/mask; fields of view are expected in it"
    ):
        make(root)
    (root / "training" / "images").rename(root / "away")
    with pytest.raises(DataNotFoundError, match=r"there is no folder .*training/images; pictures are expected in it"):
        make(root)
    with pytest.raises(DataNotFoundError, match=r"nowhere .*; expected in it: training/ and test/, each with images/"):
        make(root / "nowhere")
