import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from vantage.data.augment import Augment
from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.mask_folder import MaskFolder
from vantage.data.segmentation_augment import SegmentationAugment
from vantage.data.segmentation_dataset import FilePairs, MemoryPairs

from .segmentation_files import blocks, samples, write_mask_folder, write_pair
from .writers import picture

COUNTS = {"train": 6, "val": 2, "test": 2}
STRONG = SegmentationAugment(
    roll=True, scale=(0.5, 2.0), most_of_one_class=0.75, flip=0.5, vertical_flip=0.5, rotate=0.5, photometric=0.5
)


@pytest.fixture
def root(tmp_path):
    write_mask_folder(tmp_path, COUNTS)
    return tmp_path


def make(root, **options):
    options = {"image_size": 32, "batch_size": 3, "num_workers": 0, "augment": SegmentationAugment()} | options
    data = MaskFolder(root=str(root), **options)
    data.setup()
    return data


def equal(first, second):
    """Of two lists of batches."""
    pairs = [(a, b) for batch, other in zip(first, second, strict=True) for a, b in zip(batch, other, strict=True)]
    return all(
        a["name"] == b["name"] and all(torch.equal(a[key], b[key]) for key in ("image", "mask")) for a, b in pairs
    )


def replace(path, values):
    Image.fromarray(np.asarray(values)).save(path)


# samples


def test_samples_are_what_the_files_say(tmp_path):
    written = write_mask_folder(tmp_path, COUNTS)
    data = make(tmp_path)
    assert data.info.class_names == ["sky", "road", "car"]
    assert data.info.num_classes == 3
    assert data.info.palette is None
    assert data.info.wraps is False
    assert {name: len(dataset) for name, dataset in data.datasets.items()} == COUNTS
    batches = list(data.test_dataloader())
    assert [len(batch) for batch in batches] == [1, 1]
    for (sample,) in batches:
        assert set(sample) == {"image", "mask", "name", "index", "size"}
        assert (sample["image"].dtype, sample["mask"].dtype) == (torch.float32, torch.uint8)
        assert sample["mask"].tolist() == written["test"][sample["name"]].tolist()
        assert sample["size"] == (48, 64) == tuple(sample["image"].shape[1:])
        assert data.sample_name("test", sample["index"]) == sample["name"]
        shown = data.info.denormalize(sample["image"]).permute(1, 2, 0) * 255
        pixels = np.asarray(Image.open(tmp_path / "test/images" / f"{sample['name']}.png"))
        assert np.abs(shown.numpy() - pixels).max() < 1e-2


def test_training_samples_are_windows_of_the_size_of_the_option(root):
    batches = list(make(root).train_dataloader())
    assert [len(batch) for batch in batches] == [3, 3]
    for sample in samples(batches).values():
        assert sample["image"].shape == (3, 32, 32)
        assert sample["mask"].shape == (32, 32) == sample["size"]
        path = root / "train" / "masks" / f"{sample['name']}.png"
        whole = torch.from_numpy(np.array(Image.open(path)))
        assert any(
            torch.equal(window, sample["mask"]) for window in whole.unfold(0, 32, 1).unfold(1, 32, 1).flatten(0, 1)
        )


@pytest.mark.parametrize(
    ("resize", "expected"), [(24, (24, 32)), (96, (96, 128)), ([20, 50], (20, 50)), (None, (48, 64))]
)
def test_evaluated_masks_keep_their_own_size_whatever_the_pictures_are_resized_to(tmp_path, resize, expected):
    written = write_mask_folder(tmp_path, COUNTS)
    data = make(tmp_path, resize=resize)
    for name, sample in samples(data.val_dataloader()).items():
        assert tuple(sample["image"].shape) == (3, *expected)
        assert sample["size"] == expected
        assert sample["mask"].tolist() == written["val"][name].tolist()
    for sample in samples(data.train_dataloader()).values():
        assert sample["image"].shape == (3, 32, 32)
        assert sample["mask"].shape == (32, 32)
        assert set(sample["mask"].unique().tolist()) <= {0, 1, 2, 255}


def test_one_channel(root):
    colour, grey = (samples(make(root, in_chans=chans).test_dataloader()) for chans in (3, 1))
    info = make(root, in_chans=1).info
    for name, sample in grey.items():
        assert sample["image"].shape == (1, 48, 64)
        assert torch.equal(sample["mask"], colour[name]["mask"])
        expected = np.asarray(Image.open(root / "test/images" / f"{name}.png").convert("L"))
        assert np.abs((info.denormalize(sample["image"])[0] * 255).numpy() - expected).max() < 1e-2


@pytest.mark.parametrize("resize", [None, 40])
def test_in_memory_or_from_files_the_samples_are_the_same(root, resize):
    kept, read = (make(root, cache=cache, augment=STRONG, resize=resize) for cache in (True, False))
    assert isinstance(kept.datasets["train"].pairs, MemoryPairs)
    assert isinstance(read.datasets["train"].pairs, FilePairs)
    assert isinstance(make(root, cache_gb=1e-5).datasets["train"].pairs, FilePairs)
    assert isinstance(make(root).datasets["train"].pairs, MemoryPairs)
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        assert equal(list(getattr(kept, loader)()), list(getattr(read, loader)()))


def epochs(root, workers, **options):
    data = make(root, num_workers=workers, augment=STRONG, **options)
    loader = data.train_dataloader()
    batches = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches.extend(loader)
    return batches


def test_samples_do_not_depend_on_workers(root):
    alone = epochs(root, 0)
    torch.manual_seed(99)  # a model that draws from the global generator changes nothing
    assert equal(alone, epochs(root, 2))
    assert equal(alone, epochs(root, 1, cache=False))
    assert not equal(alone, epochs(root, 0, seed=1))
    assert not equal(alone[:2], alone[2:])


def test_pictures_of_many_sizes(root):
    rng, expected = np.random.default_rng(9), {}
    for i, size in enumerate([(20, 30), (33, 31), (7, 100), (64, 64)]):
        expected[f"odd{i}"] = blocks(rng, (0, 1, 2), size)
        write_pair(root / f"val/images/odd{i}.png", root / f"val/masks/odd{i}.png", expected[f"odd{i}"])
        write_pair(root / f"train/images/odd{i}.png", root / f"train/masks/odd{i}.png", expected[f"odd{i}"])
    data = make(root, eval_batch_size=3, batch_size=5)
    assert [len(batch) for batch in data.val_dataloader()] == [3, 3]
    got = samples(data.val_dataloader())
    assert {name: got[name]["mask"].tolist() for name in expected} == {k: v.tolist() for k, v in expected.items()}
    assert all(sample["image"].shape == (3, 32, 32) for sample in samples(data.train_dataloader()).values())
    thin = samples(make(root, batch_size=10).train_dataloader())["odd2"]  # 7 rows of 32: the rest is outside
    assert (thin["mask"] == 255).sum() == 25 * 32


# what masks mean


def test_zero_reduced(tmp_path):
    written = write_mask_folder(tmp_path, COUNTS, values=(0, 1, 2, 3))
    for name, sample in samples(make(tmp_path, reduce_zero=True).val_dataloader()).items():
        values = written["val"][name].astype(int)
        assert sample["mask"].tolist() == np.where(values == 0, 255, values - 1).tolist()
    with pytest.raises(DataError, match=r"holds the label 3, .* which is none of 0..2 and not ignored \(255\)"):
        make(tmp_path)


def test_a_class_called_ignore_names_an_index(tmp_path):
    written = write_mask_folder(tmp_path, COUNTS, values=(0, 1, 2), classes="sky\nignore\ncar\n")
    data = make(tmp_path)
    assert data.info.class_names == ["sky", "car"]
    for name, sample in samples(data.val_dataloader()).items():
        assert sample["mask"].tolist() == np.array([0, 255, 1])[written["val"][name]].tolist()


COLOURS = "light sky 0 0 255\nroad 128 64 128\nignore 0 0 0\n"


def test_colours_of_the_classes(tmp_path):
    written = write_mask_folder(tmp_path, COUNTS, values=(0, 1, 2), classes=COLOURS)
    for path in tmp_path.glob("*/masks/*.png"):
        colours = np.array([[0, 0, 255], [128, 64, 128], [0, 0, 0]], dtype=np.uint8)
        replace(path, colours[np.asarray(Image.open(path))])
    data = make(tmp_path)
    assert data.info.class_names == ["light sky", "road"]
    assert data.info.palette == [[0, 0, 255], [128, 64, 128]]
    for name, sample in samples(data.val_dataloader()).items():
        assert sample["mask"].tolist() == np.array([0, 1, 255])[written["val"][name]].tolist()


def test_masks_saved_as_jpeg_need_a_threshold(tmp_path):
    written = write_mask_folder(tmp_path, COUNTS, values=(0, 1), classes="skin\nlesion\n")
    for path in list(tmp_path.glob("*/masks/*.png")):
        white = np.roll(np.asarray(Image.open(path)) * 255, 3, axis=1)  # edges inside JPEG's blocks of 8
        path.unlink()
        Image.fromarray(white).save(path.with_suffix(".jpg"), quality=70)
    with pytest.raises(DataError, match=r"\.jpg: holds the label \d+, .*; JPEG blurs labels: .* data.threshold=127"):
        make(tmp_path)
    for name, sample in samples(make(tmp_path, threshold=127).val_dataloader()).items():
        assert sample["mask"].tolist() == np.roll(written["val"][name], 3, axis=1).tolist()


def test_black_and_white_masks_need_a_threshold(tmp_path):
    written = write_mask_folder(tmp_path, COUNTS, values=(0, 255), classes="skin\nlesion\n")
    with pytest.raises(DataError, match=r"train_00.png: holds 0 and 255, like every mask .*; give data.threshold=127"):
        make(tmp_path)
    for name, sample in samples(make(tmp_path, threshold=127).val_dataloader()).items():
        assert sample["mask"].tolist() == (written["val"][name] > 0).astype(int).tolist()
    for folder in ("train", "val", "test"):  # with one mask of class 1, 255 is what it says: to be ignored
        replace(tmp_path / folder / "masks" / f"{folder}_00.png", blocks(np.random.default_rng(0), (0, 1, 255)))
    assert set(samples(make(tmp_path).test_dataloader())["test_00"]["mask"].unique().tolist()) == {0, 1, 255}


# splits


def test_validation_is_cut_from_train_where_there_is_no_val_folder(tmp_path, caplog):
    write_mask_folder(tmp_path, {"train": 20})
    data = make(tmp_path, val_fraction=0.25)
    names = {split: set(dataset.names) for split, dataset in data.datasets.items()}
    assert {split: len(found) for split, found in names.items()} == {"train": 15, "val": 5}
    assert not names["train"] & names["val"]
    assert names["val"] == set(make(tmp_path, val_fraction=0.25, seed=5).datasets["val"].names)
    assert names["val"] != set(make(tmp_path, val_fraction=0.25, split_seed=5).datasets["val"].names)
    assert f"{tmp_path} has no test split: nothing can be tested" in caplog.text
    assert data.test_dataloader() == []
    assert list(make(tmp_path, val_fraction=0.0).datasets) == ["train"]
    with pytest.raises(DataError, match=r"data.val_fraction=0.01 of 20 training pictures is 0, which leaves none"):
        make(tmp_path, val_fraction=0.01)


def test_pictures_of_one_group_stay_together(tmp_path):
    write_mask_folder(tmp_path, {"train": 24})

    class Grouped(MaskFolder):
        def group_of(self, name):
            return name[-1]  # train_03, train_13 and train_23 show the same

    data = Grouped(root=str(tmp_path), val_fraction=0.2, image_size=32, num_workers=0)
    data.setup()
    digits = {split: {name[-1] for name in dataset.names} for split, dataset in data.datasets.items()}
    assert len(digits["val"]) == 2
    assert len(digits["train"]) == 8
    assert not digits["train"] & digits["val"]
    with pytest.raises(DataError, match=r"data.val_fraction=0.01 of 10 groups of training pictures is 0"):
        Grouped(root=str(tmp_path), val_fraction=0.01).setup()


def test_folders_without_splits_and_in_the_singular(tmp_path):
    write_mask_folder(tmp_path / "data", {"train": 10})
    (tmp_path / "data/train/images").rename(tmp_path / "data/image")
    (tmp_path / "data/train/masks").rename(tmp_path / "data/mask")
    (tmp_path / "data/train").rmdir()
    (tmp_path / "data/image").rename(tmp_path / "data/images")
    data = make(tmp_path / "data", val_fraction=0.2)
    assert {split: len(dataset) for split, dataset in data.datasets.items()} == {"val": 2, "train": 8}


def test_only_what_a_stage_needs_is_read(root):
    shutil.rmtree(root / "train")
    data = MaskFolder(root=str(root), image_size=32)
    data.setup("test")
    assert list(data.datasets) == ["test"]
    with pytest.raises(DataNotFoundError, match=r"there is no folder .*/train/images; pictures are expected in it"):
        make(root)


# options and classes.txt


def test_an_augmentation_of_another_task_is_refused(root):
    with pytest.raises(DataError, match=r"Augment.* does not move masks; use augment=default"):
        make(root, augment=Augment(flip=0.5))
    assert vars(make(root, augment=Augment()).augment) == vars(SegmentationAugment())  # augment=none


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"threshold": 255}, r"data.threshold=255 is not null or in 0..254"),
        (
            {"threshold": 127},
            r"data.threshold=127 makes two classes, and .*/classes.txt has 3; leave it out, or list two",
        ),
        ({"val_fraction": 1.0}, r"data.val_fraction=1.0 is not in \[0, 1\)"),
        ({"resize": [1, 2, 3]}, r"data.resize=\[1, 2, 3\] is not null, the shorter side or \[height, width\]"),
        ({"resize": 0}, r"data.resize=0 is not null, the shorter side or \[height, width\]"),
    ],
)
def test_options_out_of_range_are_refused(root, options, sentence):
    with pytest.raises(DataError, match=sentence):
        make(root, **options)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", r"classes.txt names 0 classes; 1 to 255 are possible"),
        ("\n".join(map(str, range(256))), r"classes.txt names 256 classes; 1 to 255 are possible"),
        ("sky\n\nsky\n", r"classes.txt, line 3: names the class 'sky' twice"),
        ("sky 1 2 300\n", r"classes.txt, line 1: the colour \(1, 2, 300\) has a value above 255"),
        ("sky 1 2 3\nroad\n", r"classes.txt: 'sky' has a colour and 'road' has none; give all of them one, or none"),
        ("sky 1 2 3\nroad 1 2 3\n", r"classes.txt, line 2: gives 'road' a colour that another class has, \(1, 2, 3\)"),
    ],
)
def test_a_wrong_list_of_classes_is_refused(root, content, sentence):
    (root / "classes.txt").write_text(content)
    with pytest.raises(DataError, match=sentence):
        make(root)


def test_a_wrong_root_is_refused(root):
    with pytest.raises(
        DataNotFoundError, match=r"there is no folder .*nowhere \(data.root=.*\); expected in it: classes"
    ):
        make(root / "nowhere")
    (root / "classes.txt").unlink()
    with pytest.raises(DataNotFoundError, match=r"classes.txt is missing; write the classes into it, one per line"):
        make(root)


def test_what_was_read_is_logged(root, caplog):
    with caplog.at_level(logging.INFO):
        make(root)
    assert "train: 6 pictures" in caplog.text


def test_a_picture_to_predict_is_prepared_as_evaluation_does(root):
    data = make(root, resize=40)
    image = picture(np.random.default_rng(3), 48, 64)
    image.save(root / "test/images/test_00.png")
    sample = samples(make(root, resize=40).test_dataloader())["test_00"]
    shown, size = data.predict_transform(data.info)(image)
    assert size == (48, 64)
    assert torch.equal(shown, sample["image"])
