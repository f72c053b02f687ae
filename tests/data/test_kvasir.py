"""Polyps in the two forms in which they are passed around, in small."""

import pickle

import numpy as np
import pytest
from PIL import Image

from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.kvasir import TEST_SETS, Kvasir
from vantage.data.segmentation_augment import SegmentationAugment

from .writers import picture

SIZE = (48, 64)


def disk(shift=0):
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return (y - 20) ** 2 + (x - 25 - shift) ** 2 < 14**2


def write_pairs(images, masks, count, extension, prefix=""):
    rng = np.random.default_rng(count)
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    for i in range(count):
        picture(rng, *SIZE).save(images / f"{prefix}{i}{extension}")
        Image.fromarray(disk(i).astype(np.uint8) * 255).save(masks / f"{prefix}{i}{extension}")


@pytest.fixture
def whole(tmp_path):
    """Kvasir-SEG itself; its masks are JPEG files of three channels."""
    root = tmp_path / "Kvasir-SEG"
    write_pairs(root / "images", root / "masks", 10, ".jpg", "cju")
    for path in (root / "masks").iterdir():
        Image.open(path).convert("RGB").save(path, quality=60)
    (root / "kavsir_bboxes.json").write_text("{}")
    return root


@pytest.fixture
def pranet(tmp_path):
    root = tmp_path / "polyps"
    write_pairs(root / "TrainDataset" / "image", root / "TrainDataset" / "mask", 10, ".png")
    for i, name in enumerate(TEST_SETS):
        write_pairs(root / "TestDataset" / name / "images", root / "TestDataset" / name / "masks", 1 + i, ".png")
    return root


def make(root, **options):
    options = {"image_size": 32, "resize": None, "num_workers": 0, "augment": SegmentationAugment()} | options
    data = Kvasir(root=str(root), **options)
    data.setup()
    return data


def test_jpeg_masks_are_cut_at_the_threshold(whole):
    assert len(np.unique(np.asarray(Image.open(whole / "masks" / "cju0.jpg")))) > 2  # or nothing is tested here
    data = make(whole, val_fraction=0.0)
    assert data.info.class_names == ["background", "polyp"]
    for i in range(10):
        mask = data.datasets["train"].raw(i)["mask"].numpy()
        assert (mask == disk(i)).mean() > 0.995
    dark = make(whole, val_fraction=0.0, threshold=0).datasets["train"].raw(3)["mask"]
    bright = make(whole, val_fraction=0.0, threshold=254).datasets["train"].raw(3)["mask"]
    assert dark.sum() > disk(3).sum() > bright.sum() > 0


def test_kvasir_seg_has_no_test_split_and_validation_is_cut(whole, caplog):
    data = make(whole, val_fraction=0.2)
    assert {split: len(dataset) for split, dataset in data.datasets.items()} == {"val": 2, "train": 8}
    assert "has no test split: nothing can be tested" in caplog.text


@pytest.mark.parametrize("name", TEST_SETS)
def test_one_of_the_five_is_tested(pranet, name):
    data = make(pranet, test_set=name)
    assert len(data.datasets["train"]) + len(data.datasets["val"]) == 10
    dataset = data.datasets["test"]
    assert dataset.names == [str(i) for i in range(1 + TEST_SETS.index(name))]
    sample = dataset[len(dataset) - 1]
    assert np.array_equal(sample["mask"].numpy(), disk(len(dataset) - 1))


def test_all_five_are_tested(pranet):
    dataset = make(pranet, test_set="all").datasets["test"]
    assert dataset.names == [f"{name}/{i}" for count, name in enumerate(TEST_SETS, 1) for i in range(count)]
    assert np.array_equal(dataset[5]["mask"].numpy(), disk(2))  # CVC-ColonDB/2


@pytest.mark.parametrize("where", ["TrainDataset", "TestDataset/Kvasir"])
def test_singular_and_plural_both_occur(pranet, where):
    folder = pranet / where
    for old in sorted(folder.iterdir()):
        old.rename(folder / (old.name[:-1] if old.name.endswith("s") else old.name + "s"))
    assert {path.name for path in folder.iterdir()} in ({"image", "mask"}, {"images", "masks"})
    data = make(pranet)
    assert {split: len(dataset) for split, dataset in data.datasets.items()} == {"train": 9, "val": 1, "test": 1}


def test_pictures_are_squeezed_and_masks_evaluated_at_their_own_size(pranet):
    data = make(pranet, resize=(32, 32))
    (batch,) = list(data.test_dataloader())
    assert batch[0]["image"].shape == (3, 32, 32)
    assert batch[0]["mask"].shape == SIZE
    train = next(iter(data.train_dataloader()))
    assert {(*sample["image"].shape, *sample["mask"].shape) for sample in train} == {(3, 32, 32, 32, 32)}


def test_without_testdataset_nothing_is_tested(pranet, caplog):
    (pranet / "TestDataset").rename(pranet.parent / "elsewhere")
    assert sorted(make(pranet).datasets) == ["train", "val"]
    assert "has no test split" in caplog.text


def test_a_test_set_that_is_not_there_is_named(pranet):
    (pranet / "TestDataset" / "CVC-300").rename(pranet / "TestDataset" / "CVC300")
    for option in ("CVC-300", "all"):
        with pytest.raises(DataNotFoundError) as caught:
            make(pranet, test_set=option)
        missing = pranet / "TestDataset" / "CVC-300"
        assert str(caught.value).startswith(f"there is no folder {missing} (data.test_set={option}); ")
        assert "has CVC-ClinicDB, CVC-ColonDB, CVC300, ETIS-LaribPolypDB, Kvasir" in str(caught.value)
    assert len(make(pranet).datasets["test"]) == 1  # the others can be


def test_options_out_of_range_are_refused(pranet):
    with pytest.raises(DataError, match=r"data.test_set='kvasir' is not Kvasir, CVC-ClinicDB, .*LaribPolypDB or all"):
        make(pranet, test_set="kvasir")
    with pytest.raises(DataError, match=r"data.threshold=255 is not in 0..254"):
        make(pranet, threshold=255)


def test_what_lacks_its_partner_is_named(pranet, tmp_path):
    (pranet / "TrainDataset" / "mask" / "4.png").unlink()
    with pytest.raises(DataError, match=r"image/4.png: has no mask .*mask/4\.\* .*on_bad_sample=skip"):
        make(pranet)
    assert len(make(pranet, on_bad_sample="skip", val_fraction=0.0).datasets["train"]) == 9
    with pytest.raises(DataNotFoundError, match=r"there is no folder .*/images; pictures are expected in it"):
        make(tmp_path)
    with pytest.raises(
        DataNotFoundError, match=r"nowhere \(data.root=.*\); expected in it: images/ and masks/, or Train"
    ):
        make(tmp_path / "nowhere")


def test_a_split_can_be_sent_to_a_worker(pranet):
    split = pickle.loads(pickle.dumps(make(pranet).scan("test")))
    assert np.array_equal(split.read_mask(split.masks[0]).numpy(), disk())
