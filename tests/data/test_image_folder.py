import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionFolder
from torchvision.transforms import v2

from vantage.data.augment import Augment
from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.image_folder import ImageFolder
from vantage.data.store import FileStore, MemoryStore, PackedStore

from .writers import picture, write_folder

COUNTS = {
    "train": {"bird": 20, "ant": 40, "cat": 60},
    "val": {"ant": 3, "bird": 2, "cat": 1},
    "test": {"ant": 2, "bird": 3, "cat": 4},
}


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path, COUNTS, extension="jpg")


def make(root, **options):
    options = {"image_size": 32, "batch_size": 4, "num_workers": 0, "augment": Augment()} | options
    data = ImageFolder(root=str(root), **options)
    data.setup()
    return data


def collect(loader):
    batches = list(loader)
    return {key: torch.cat([batch[key] for batch in batches]) for key in ("image", "label", "index")}


@pytest.mark.parametrize("cache", [True, False])
def test_agrees_with_torchvisions_folder(root, cache):
    data = make(root, cache=cache)
    expected = TorchvisionFolder(str(root / "test"), transform=v2.PILToTensor())
    got = collect(data.test_dataloader())
    assert data.info.class_names == expected.classes == ["ant", "bird", "cat"]
    assert got["label"].tolist() == expected.targets
    pixels = torch.stack([image for image, _ in expected])
    assert (data.info.denormalize(got["image"]) * 255 - pixels).abs().max() < 1e-3
    for i, (path, _) in enumerate(expected.samples):
        assert str(root / data.sample_name("test", i)) == path


def test_parallel_decoding_equals_serial(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(600):
            size = (8, 8) if i % 2 else (7, 9)
            picture(rng, *size).save(tmp_path / "train" / name / f"{i:04d}.png")
    (tmp_path / "train" / "b" / "0101.png").write_bytes(b"")
    options = {"image_size": 8, "on_bad_sample": "skip", "val_fraction": 0.1}
    for augment, kind in ((Augment(), MemoryStore), (Augment(crop="resized"), PackedStore)):
        cached, files = (
            make(tmp_path, augment=augment, **options),
            make(tmp_path, cache=False, augment=augment, **options),
        )
        assert isinstance(cached.datasets["train"].store, kind)
        assert isinstance(files.datasets["train"].store, FileStore)
        by_name = dict(zip(files.datasets["train"].names, range(10**6)))
        assert len(cached.datasets["train"]) == len(by_name) - 1
        for i, name in enumerate(cached.datasets["train"].names):
            read = cached.datasets["train"].store.read(i)
            assert torch.equal(read, files.datasets["train"].store.read(by_name[name]))


def test_auto_cache_keeps_to_its_limit(root):
    assert isinstance(make(root).datasets["train"].store, MemoryStore)
    assert isinstance(make(root, cache_gb=1e-5).datasets["train"].store, FileStore)
    assert isinstance(make(root, cache_gb=1e-5, cache=True).datasets["train"].store, MemoryStore)
    resized = Augment(crop="resized")
    assert isinstance(make(root, cache_gb=1e-5, augment=resized).datasets["train"].store, FileStore)
    assert isinstance(make(root, augment=resized).datasets["train"].store, MemoryStore)  # all of one size


def test_resized_crops_come_from_the_original(tmp_path):
    write_folder(tmp_path, {"train": {"a": 6, "b": 6}, "val": {"a": 1, "b": 1}}, size=(90, 70))
    for cache in (True, False):
        data = make(tmp_path, cache=cache, augment=Augment(crop="resized", crop_scale=(0.1, 0.2)))
        assert data.datasets["train"].store.read(0).shape == (3, 90, 70)
        assert next(iter(data.train_dataloader()))["image"].shape == (4, 3, 32, 32)
        assert next(iter(data.val_dataloader()))["image"].shape == (2, 3, 32, 32)


def test_validation_is_cut_from_train_without_a_val_folder(tmp_path):
    write_folder(tmp_path, {"train": COUNTS["train"]})
    data, again = make(tmp_path, val_fraction=0.1, seed=0), make(tmp_path, val_fraction=0.1, seed=5)
    val, train = data.datasets["val"], data.datasets["train"]
    assert val.labels.bincount().tolist() == [4, 2, 6]
    assert train.labels.bincount().tolist() == [36, 18, 54]
    assert not set(val.names) & set(train.names)
    assert again.datasets["val"].names == val.names
    assert make(tmp_path, val_fraction=0.1, split_seed=1).datasets["val"].names != val.names


def test_what_is_missing_is_said(tmp_path, caplog):
    write_folder(tmp_path, {"train": COUNTS["train"]})
    data = make(tmp_path, val_fraction=0.0)
    assert data.test_dataloader() == []
    assert data.val_dataloader() == []
    assert f"there is no folder {tmp_path / 'test'}: nothing can be tested" in caplog.text
    assert "nothing is validated" in caplog.text


@pytest.mark.parametrize("in_chans", [1, 3])
def test_all_kinds_of_pixels_are_converted(tmp_path, in_chans):
    rng = np.random.default_rng(0)
    folder = tmp_path / "train" / "all"
    folder.mkdir(parents=True)
    for i, (mode, extension) in enumerate(
        [("L", "jpg"), ("CMYK", "jpg"), ("RGBA", "png"), ("P", "png"), ("LA", "png"), ("1", "png"), ("RGB", "webp")]
    ):
        image = picture(rng, 32, 32)
        image = image.convert("L").convert("LA") if mode == "LA" else image.convert(mode)
        image.save(folder / f"{i}.{extension}")
    data = make(tmp_path, in_chans=in_chans, val_fraction=0.0, drop_last=False, batch_size=7)
    images = next(iter(data.train_dataloader()))["image"]
    assert images.shape == (7, in_chans, 32, 32)


def test_stage_test_reads_only_the_test_images(root):
    (root / "train" / "ant" / "0000.jpg").write_bytes(b"broken")
    data = ImageFolder(root=str(root), image_size=32, num_workers=0)
    data.setup("test")
    assert list(data.datasets) == ["test"]


# ---- bad samples


def truncate(path):
    path.write_bytes(path.read_bytes()[:300])
    return path


def test_a_corrupt_file_is_named_at_setup(root):
    truncate(root / "train" / "bird" / "0003.jpg")
    truncate(root / "train" / "cat" / "0001.jpg")
    with pytest.raises(DataError, match=r"train/bird/0003\.jpg.*\(and 1 more\); data.on_bad_sample=skip"):
        make(root)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_file_is_named_while_training_uncached(root, workers):
    truncate(root / "train" / "bird" / "0003.jpg")
    data = make(root, cache=False, num_workers=workers)
    with pytest.raises(DataError, match=r"train/bird/0003\.jpg.*data.on_bad_sample=skip") as caught:
        list(data.train_dataloader())
    assert "\n" not in str(caught.value)


def test_skip_leaves_bad_files_out_of_a_cached_split(root, caplog):
    path = truncate(root / "test" / "bird" / "0001.jpg")
    data = make(root, on_bad_sample="skip")
    test = collect(data.test_dataloader())
    assert test["label"].tolist() == [0, 0, 1, 1, 2, 2, 2, 2]
    assert [data.sample_name("test", i) for i in test["index"].tolist()] == [
        name for name in (f"test/{c}/{i:04d}.jpg" for c, n in COUNTS["test"].items() for i in range(n))
        if not str(path).endswith(name)
    ]  # fmt: skip
    assert str(path) in caplog.text
    assert "1 of 9 test samples are bad and were skipped" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_counts_bad_files_of_an_uncached_split(root, caplog, workers):
    for i in range(2):
        truncate(root / "train" / "cat" / f"{i:04d}.jpg")
    data = make(root, on_bad_sample="skip", cache=False, num_workers=workers, drop_last=False)
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            train = collect(data.train_dataloader())
        assert len(train["label"].bincount()) == 3
        assert train["label"].bincount().tolist() == [40, 20, 58]
        assert "2 of 120 samples are bad and were skipped: train/cat/0000.jpg, train/cat/0001.jpg" in caplog.text


def test_an_evaluation_batch_of_bad_samples_only_is_left_out(root):
    truncate(root / "test" / "cat" / "0003.jpg")  # alone in the last batch of four
    data = make(root, on_bad_sample="skip", cache=False)
    assert [len(batch["label"]) for batch in data.test_dataloader()] == [4, 4]


def test_a_training_batch_of_bad_samples_only_stops(root):
    truncate(root / "train" / "cat" / "0003.jpg")
    data = make(root, on_bad_sample="skip", cache=False, batch_size=1)
    with pytest.raises(DataError, match=r"all 1 samples of a training batch are bad.*train/cat/0003\.jpg"):
        list(data.train_dataloader())


def test_other_files_are_counted_and_logged(root, caplog):
    (root / "train" / "ant" / "notes.txt").write_text("x")
    (root / "train" / "ant" / ".hidden.jpg").write_text("x")
    (root / "train" / "list.csv").write_text("x")
    deeper = root / "train" / "ant" / "more"
    deeper.mkdir()
    Image.new("RGB", (32, 32)).save(deeper / "x.JPG", format="JPEG")
    data = make(root)
    assert f"{root / 'train'}: ignored 3 files" in caplog.text
    assert "train/ant/more/x.JPG" in data.datasets["train"].names


# ---- wrong layouts


def test_wrong_layouts_are_named(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"there is no folder .*nowhere/train .*data.root/train/<class>/"):
        make(tmp_path / "nowhere")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="has no class folders"):
        make(tmp_path)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(DataError, match=r"class folder .*train/empty holds no image"):
        make(tmp_path)


def test_a_class_that_train_lacks_is_refused(root):
    write_folder(root, {"test": {"dog": 1}}, extension="jpg")
    with pytest.raises(DataError, match=r"test/dog is a class that .*train does not have"):
        make(root)


def test_all_images_bad(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "0.jpg").write_bytes(b"no")
    with pytest.raises(DataError, match="the train split has no sample left"):
        make(tmp_path, on_bad_sample="skip", val_fraction=0.0)
