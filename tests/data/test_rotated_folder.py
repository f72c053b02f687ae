import logging
import math

import numpy as np
import pytest
import torch
from PIL import Image

from vantage.data.augment import Augment
from vantage.data.dota import CLASSES, Dota
from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.rotated_augment import RotatedAugment
from vantage.data.rotated_folder import RotatedFolder
from vantage.data.store import FileStore, MemoryStore

from .rotated_files import SHIPS, pixels, write_rotated, write_split

SPLITS = {
    "train": {f"P{i:04d}": SHIPS for i in range(6)} | {"P0006": ""},
    "val": {"P0100": SHIPS, "P0101": "gsd:1\n"},
    "test": {"P0200": SHIPS},
}


@pytest.fixture
def root(tmp_path):
    return write_rotated(tmp_path / "mine", SPLITS)


def make(root, kind=RotatedFolder, **options):
    options = {"image_size": 64, "num_workers": 0, "augment": RotatedAugment()} | options
    data = kind(root=str(root), **options)
    data.setup()
    return data


def test_samples_are_what_the_files_say(root):
    data = make(root)
    assert data.info.class_names == ["plane", "ship"]
    assert {name: len(dataset) for name, dataset in data.datasets.items()} == {"train": 7, "val": 2, "test": 1}
    (batch,) = list(data.test_dataloader())
    (sample,) = batch
    assert sample["name"] == "P0200"
    assert sample["size"] == (96, 120)
    assert sample["labels"].tolist() == [1, 0]
    assert sample["difficult"].tolist() == [False, True]
    boxes = torch.tensor([[30, 25, 40, 10, 0], [65, 75, 20 * math.sqrt(2), 10 * math.sqrt(2), math.pi / 4]])
    assert torch.allclose(sample["boxes"], boxes, atol=1e-5)
    assert {key: sample[key].dtype for key in ("image", "boxes", "labels", "difficult")} == {
        "image": torch.float32,
        "boxes": torch.float32,
        "labels": torch.int64,
        "difficult": torch.bool,
    }
    shown = data.info.denormalize(sample["image"]).permute(1, 2, 0) * 255
    assert np.abs(shown.numpy() - pixels(root / "test/images/P0200.png")).max() < 1e-2


def test_pictures_without_objects_are_kept_and_counted(root, caplog):
    with caplog.at_level(logging.INFO):
        data = make(root)
    assert "train: 7 pictures, 12 objects (6 difficult), 1 pictures without any object" in caplog.text
    samples = [sample for batch in data.val_dataloader() for sample in batch]
    assert [len(sample["boxes"]) for sample in samples] == [2, 0]
    assert samples[1]["boxes"].shape == (0, 5)
    assert samples[1]["labels"].dtype == torch.int64


def test_training_samples_have_the_size_of_the_option(root):
    batches = list(make(root, batch_size=3).train_dataloader())
    assert [len(batch) for batch in batches] == [3, 3]
    for sample in batches[0] + batches[1]:
        assert sample["image"].shape == (3, 64, 64)
        assert sample["size"] == (64, 64)


@pytest.mark.parametrize(("cache", "kind"), [(True, MemoryStore), (False, FileStore)])
def test_cached_or_not_the_samples_are_the_same(root, cache, kind):
    data = make(root, cache=cache)
    assert isinstance(data.datasets["train"].store, kind)
    expected = make(root, cache="auto").datasets["train"]
    for got, wanted in zip(data.datasets["train"].__getitems__([0, 7, 13]), expected.__getitems__([0, 7, 13])):
        assert torch.equal(got["image"], wanted["image"])
        assert torch.equal(got["boxes"], wanted["boxes"])


def test_validation_is_cut_from_train_where_there_is_no_val_folder(tmp_path, caplog):
    root = write_rotated(tmp_path, {"train": {f"P{i:02d}": SHIPS for i in range(20)}})
    data = make(root, val_fraction=0.25)
    names = {split: set(dataset.names) for split, dataset in data.datasets.items()}
    assert {split: len(found) for split, found in names.items()} == {"train": 15, "val": 5}
    assert not names["train"] & names["val"]
    assert names["val"] == set(make(root, val_fraction=0.25, seed=5).datasets["val"].names)
    assert names["val"] != set(make(root, val_fraction=0.25, split_seed=5).datasets["val"].names)
    assert f"there is no folder {root / 'test'}: nothing can be tested" in caplog.text
    assert list(make(root, val_fraction=0.0).datasets) == ["train"]
    with pytest.raises(DataError, match=r"data.val_fraction=0.01 of 20 training pictures is 0, which leaves none"):
        make(root, val_fraction=0.01)


def test_a_test_folder_without_labels_is_only_for_prediction(tmp_path, caplog):
    root = write_rotated(tmp_path, {"train": SPLITS["train"], "val": SPLITS["val"]})
    (root / "test" / "images").mkdir(parents=True)
    assert list(make(root).datasets) == ["train", "val"]
    assert "has no labelTxt: nothing can be tested, but eval.py predict= works" in caplog.text


def test_training_on_tiles_while_whole_pictures_are_evaluated(root):
    write_split(root / "train_tiles", {"P0000__64__0___0": "1 1 9 1 9 9 1 9 ship 2\n"}, (64, 64))
    data = make(root, train="train_tiles")
    assert data.datasets["train"].names == ["P0000__64__0___0"]
    assert data.datasets["val"].names == ["P0100", "P0101"]
    assert data.datasets["train"].objects[0].difficult.tolist() == [True]


def test_tiles_of_a_picture_are_not_divided_between_training_and_validation(tmp_path):
    tiles = {f"P{i}__64__{x}___0": SHIPS for i in range(8) for x in (0, 48, 56)}
    root = write_rotated(tmp_path, {"train_tiles": tiles})
    data = make(root, train="train_tiles", val_fraction=0.25)
    pictures = {split: {name.split("__")[0] for name in dataset.names} for split, dataset in data.datasets.items()}
    assert {split: len(dataset) for split, dataset in data.datasets.items()} == {"val": 6, "train": 18}
    assert not pictures["train"] & pictures["val"]


# bad input


def spoil(root, what):
    """Spoils a sample of the training split -> the sentence for it."""
    images, labels = root / "train/images", root / "train/labelTxt"
    if what == "no label file":
        (labels / "P0000.txt").unlink()
        return (
            f"{images / 'P0000.png'}: has no label file {labels / 'P0000.txt'}; write an empty one if nothing is on it"
        )
    if what == "no picture":
        (images / "P0000.png").unlink()
        return f"{labels / 'P0000.txt'}: has no picture {images / 'P0000'}.* ("
    if what == "two pictures":
        Image.new("RGB", (9, 9)).save(images / "P0000.jpg")
        return f"{images / 'P0000.jpg'}: has the same name as {images / 'P0000.png'}, and {labels / 'P0000.txt'} labels"
    if what == "truncated":
        content = (images / "P0000.png").read_bytes()
        (images / "P0000.png").write_bytes(content[: len(content) // 2])
        return f"{images / 'P0000.png'}: cannot be decoded ("
    if what == "no text":
        (labels / "P0000.txt").write_bytes(b"\xff\xfe\x00\x01")
        return f"{labels / 'P0000.txt'}: is not a text file (lines of 'x1 y1"
    (labels / "P0000.txt").write_text(SHIPS + "1 2 3 4 5 6 7 ship 0\n")
    return f"{labels / 'P0000.txt'}, line 5: has 7 numbers before 'ship', and a quadrilateral needs 8 (x1 y1"


BAD = ["no label file", "no picture", "two pictures", "truncated", "no text", "seven numbers"]


@pytest.mark.parametrize("what", BAD)
def test_a_bad_sample_is_refused_with_file_and_reason(root, what):
    sentence = spoil(root, what)
    with pytest.raises(DataError) as caught:
        make(root)
    assert str(caught.value).startswith(sentence)
    assert str(caught.value).endswith("; data.on_bad_sample=skip leaves such samples out")


@pytest.mark.parametrize("what", BAD)
def test_bad_samples_can_be_skipped_and_are_counted(root, what, caplog):
    sentence = spoil(root, what)
    data = make(root, on_bad_sample="skip")
    assert sentence in caplog.text
    assert "are bad and were skipped" in caplog.text
    kept = 7 if what == "seven numbers" else 6
    assert len(data.datasets["train"]) == kept
    assert len(data.train_dataloader()) == kept // 2


def test_files_found_bad_while_training_are_skipped_too(root, caplog):
    data = make(root, cache=False, on_bad_sample="skip", eval_batch_size=1)
    (root / "val/images/P0100.png").write_bytes(b"nothing")
    assert [sample["name"] for batch in data.val_dataloader() for sample in batch] == ["P0101"]
    assert "1 of 2 samples are bad and were skipped: P0100" in caplog.text
    strict = make(root, cache=False)
    with pytest.raises(
        DataError, match=r"P0100.png: cannot be decoded .* data.on_bad_sample=skip leaves such files out"
    ):
        list(strict.val_dataloader())


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "1"])
def test_pictures_of_any_mode_become_rgb(root, mode):
    path = root / "test/images/P0200.png"
    image = Image.open(path)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 256 + 77)
    else:
        image = image.convert(mode)
    path.unlink()
    path = path.with_suffix(".tif")
    image.save(path)
    (batch,) = list(make(root).test_dataloader())
    shown = make(root).info.denormalize(batch[0]["image"]).permute(1, 2, 0) * 255
    expected = Image.open(path)
    if mode == "I;16":
        expected = Image.fromarray((np.asarray(expected) >> 8).astype(np.uint8))
    assert np.abs(shown.numpy() - np.asarray(expected.convert("RGB"))).max() < 1e-2


def test_32_bit_pictures_are_refused(root):
    path = root / "test/images/P0200.png"
    path.unlink()
    Image.fromarray(np.ones((9, 9), dtype=np.float32)).save(path.with_suffix(".tif"))
    with pytest.raises(DataError, match=r"P0200.tif: pixels of mode 'F' \(32 bit\) have no agreed range"):
        make(root)


def test_bmp_is_read_in_its_colours(root):
    """A BMP file holds blue, green, red."""
    path = root / "test/images/P0200.png"
    path.unlink()
    Image.new("RGB", (8, 8), (255, 0, 10)).save(path.with_suffix(".bmp"))
    (batch,) = list(make(root).test_dataloader())
    assert (make(root).info.denormalize(batch[0]["image"])[:, 0, 0] * 255).round().tolist() == [255, 0, 10]


def test_a_wrong_root_or_classes_file_is_refused(root, tmp_path):
    with pytest.raises(DataNotFoundError, match=r"there is no folder .*nowhere \(.*\); classes.txt, train/images/"):
        make(tmp_path / "nowhere")
    for content, sentence in {
        "": "classes.txt is empty; write the classes into it, one per line, in label order",
        "ship\nship\n": "classes.txt: names the class 'ship' twice",
        "ship\nsmall vehicle\n": "classes.txt: the class 'small vehicle' holds a space",
    }.items():
        (root / "classes.txt").write_text(content)
        with pytest.raises(DataError, match=sentence):
            make(root)
    (root / "classes.txt").unlink()
    with pytest.raises(DataNotFoundError, match=r"classes.txt is missing; write the classes into it"):
        make(root)
    (root / "classes.txt").write_text("ship\n")
    with pytest.raises(DataError, match=r"P0000.txt, line 4: has the unknown class 'plane'; classes: ship"):
        make(root)


def test_a_missing_label_folder_is_refused(root):
    with pytest.raises(DataNotFoundError, match=r"there is no folder .*labels; label files are expected in it"):
        make(root, labels="labels")


def test_an_augmentation_of_whole_pictures_is_refused(root):
    with pytest.raises(DataError, match="augment is of the kind Augment, which does not move boxes; use"):
        make(root, augment=Augment(flip=0.5))
    assert vars(make(root, augment=Augment()).augment) == vars(RotatedAugment())  # augment=none


# DOTA


def test_dota_has_the_classes_of_its_version():
    assert [len(CLASSES[version]) for version in ("1.0", "1.5", "2.0")] == [15, 16, 18]
    assert CLASSES["2.0"][:15] == CLASSES["1.0"]
    assert CLASSES["2.0"][15:] == ("container-crane", "airport", "helipad")
    assert Dota(root="x", version=1.5).num_classes == 16
    with pytest.raises(DataError, match=r"data.version='3.0' is not one of 1.0, 1.5, 2.0"):
        Dota(root="x", version="3.0")


@pytest.mark.parametrize(
    ("version", "count", "expected"),
    [
        ("1.0", None, [False, True, True]),
        ("1.5", None, [False, False, True]),
        ("2.0", None, [False, False, True]),
        ("1.0", True, [False, False, True]),
        ("1.5", False, [False, True, True]),
    ],
)
def test_difficult_objects_count_as_in_the_versions_evaluation(root, version, count, expected):
    write_split(root / "test", {"P0200": SHIPS + "10 20 50 20 50 30 10 30 ship 2\n"})
    data = make(root, Dota, version=version, count_difficult=count)
    assert data.datasets["test"].objects[0].difficult.tolist() == expected
    assert data.datasets["test"].objects[0].labels.tolist() == [6, 0, 6]


def test_dota_says_what_it_expects(tmp_path):
    with pytest.raises(DataNotFoundError, match="DOTA is expected in it as train/images and train/labelTxt"):
        make(tmp_path / "nowhere", Dota)
    with pytest.raises(DataNotFoundError, match=r"train/images; pictures are expected in it"):
        make(tmp_path, Dota)
