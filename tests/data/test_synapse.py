"""TransUNet's files of Synapse, in small: slices in npz archives and volumes in HDF5."""

import pickle

import h5py
import numpy as np
import pytest
import torch

from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.segmentation_augment import SegmentationAugment
from vantage.data.synapse import Synapse

CASES, SLICES, SIDE = 6, 4, 24
ORGANS = ["aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach"]
# the challenge's numbering, without the background
BTCV = ["spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta"]
BTCV += ["inferior vena cava", "portal and splenic vein", "pancreas", "right adrenal gland", "left adrenal gland"]


def values(seed, *shape):
    """A picture in 0..1 with both ends in it, float32 as in the release, and labels 0..8 in float32 as well."""
    rng = np.random.default_rng(seed)
    image = rng.random(shape, dtype=np.float32)
    image[..., 0, 0], image[..., 0, 1] = 0, 1
    return image, rng.integers(0, 9, shape).astype(np.float32)


def write_slice(root, name, image, label):
    np.savez(root / "train_npz" / f"{name}.npz", image=image, label=label)


def write_volume(root, name, image, label):
    with h5py.File(root / "test_vol_h5" / f"{name}.npy.h5", "w") as file:
        file["image"], file["label"] = image, label


@pytest.fixture
def root(tmp_path):
    for folder in ("train_npz", "test_vol_h5"):
        (tmp_path / folder).mkdir()
    for case in range(CASES):
        for place in range(SLICES):
            write_slice(tmp_path, f"case{5 + case:04d}_slice{place:03d}", *values(10 * case + place, SIDE, SIDE))
    write_volume(tmp_path, "case0001", *values(100, 7, SIDE, SIDE))
    write_volume(tmp_path, "case0002", *values(101, 5, SIDE, SIDE))
    return tmp_path


def make(root, **options):
    options = {"image_size": 16, "resize": None, "num_workers": 0, "augment": SegmentationAugment()} | options
    data = Synapse(root=str(root), **options)
    data.setup()
    return data


def in_bytes(image):
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def test_a_slice_is_a_sample(root):
    data = make(root, val_fraction=0.0)
    assert data.info.class_names == ["background", *ORGANS]
    dataset = data.datasets["train"]
    assert dataset.names[:5] == [f"case0005_slice{i:03d}" for i in range(4)] + ["case0006_slice000"]
    image, label = values(12, SIDE, SIDE)
    sample = dataset.raw(dataset.names.index("case0006_slice002"))
    assert np.array_equal(sample["image"].numpy(), in_bytes(image)[None])
    assert np.array_equal(sample["mask"].numpy(), label)
    trained = dataset[0]
    assert trained["image"].shape == (1, 16, 16)
    assert (trained["mask"].shape, trained["mask"].dtype) == ((16, 16), torch.uint8)
    assert 0 <= float(trained["image"].min()) < float(trained["image"].max()) <= 1


@pytest.mark.parametrize("cache", [True, False])
def test_a_test_sample_is_a_volume(root, cache):
    samples = [sample for batch in make(root, cache=cache).test_dataloader() for sample in batch]
    assert [sample["name"] for sample in samples] == ["case0001", "case0002"]
    for seed, depth, sample in zip((100, 101), (7, 5), samples):
        image, label = values(seed, depth, SIDE, SIDE)
        assert np.array_equal(sample["mask"].numpy(), label)
        assert sample["image"].shape == (depth, 1, SIDE, SIDE)
        assert sample["size"] == (SIDE, SIDE)
        assert np.abs(sample["image"][:, 0].numpy() - image).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("cache", [True, False])
def test_volumes_are_resized_slice_by_slice_and_their_masks_are_not(root, cache):
    data = make(root, resize=(16, 12), image_size=(16, 12), cache=cache)
    volume = data.datasets["test"][1]
    assert volume["image"].shape == (5, 1, 16, 12)
    assert volume["mask"].shape == (5, SIDE, SIDE)
    image, label = values(101, 5, SIDE, SIDE)
    for place in range(5):
        write_slice(root, f"case0099_slice{place:03d}", image[place], label[place])
    again = make(root, resize=(16, 12), image_size=(16, 12), val_fraction=0.0).datasets["train"]
    for place in range(5):
        sample = again.raw(again.names.index(f"case0099_slice{place:03d}"))
        assert torch.equal(data.info.normalize(sample["image"]), volume["image"][place])


def test_in_three_channels(root):
    data = make(root, in_chans=3)
    for sample in (data.datasets["test"].raw(0), data.datasets["train"].raw(0)):
        assert sample["image"].shape[-3] == 3
        assert torch.equal(sample["image"][..., 0, :, :], sample["image"][..., 2, :, :])


def test_validation_is_cut_by_patient(root):
    data = make(root, val_fraction=0.34)
    patients = {split: {name[:8] for name in dataset.names} for split, dataset in data.datasets.items()}
    assert len(data.datasets["val"]) == 2 * SLICES
    assert len(data.datasets["train"]) == (CASES - 2) * SLICES
    assert not patients["train"] & patients["val"]
    assert data.datasets["val"][0]["image"].shape == (1, SIDE, SIDE)


def test_lists_choose_where_they_exist(root, caplog):
    lists = root / "lists" / "lists_Synapse"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("case0006_slice001\ncase0005_slice003\n")
    (lists / "test_vol.txt").write_text("case0002\n")
    data = make(root, val_fraction=0.0)
    assert data.datasets["train"].names == ["case0006_slice001", "case0005_slice003"]
    assert data.datasets["test"].names == ["case0002"]
    (lists / "test_vol.txt").write_text("case0002\ncase0008\n")
    sentence = f"{lists / 'test_vol.txt'}: names case0008, and there is no {root / 'test_vol_h5' / 'case0008'}.npy.h5"
    with pytest.raises(DataError) as caught:
        make(root, val_fraction=0.0)
    assert str(caught.value).startswith(sentence)
    assert make(root, val_fraction=0.0, on_bad_sample="skip").datasets["test"].names == ["case0002"]
    assert sentence in caplog.text


def test_without_volumes_nothing_is_tested(root, caplog):
    (root / "test_vol_h5").rename(root / "elsewhere")
    assert sorted(make(root).datasets) == ["train", "val"]
    assert "has no test split: nothing can be tested" in caplog.text


def test_hounsfield_units_are_clipped_and_scaled_as_in_the_release(root):
    units = np.linspace(-1024, 1500, 5 * SIDE * SIDE).reshape(5, SIDE, SIDE).astype(np.int16)
    label = np.zeros(units.shape, dtype=np.uint8)
    write_volume(root, "case0001", units, label)
    write_volume(root, "case0002", (np.clip(units.astype(np.float64), -125, 275) + 125) / 400, label)
    raw, scaled = (make(root).datasets["test"].raw(i)["image"] for i in (0, 1))
    assert (raw.int() - scaled.int()).abs().max() <= 1  # two roundings
    assert (raw == scaled).float().mean() > 0.999
    assert raw.flatten()[0] == 0
    assert raw.flatten()[-1] == 255
    at = int(np.abs(units.flatten() - 75).argmin())
    assert raw.flatten()[at] == pytest.approx(255 * (75 + 125) / 400, abs=1)


def test_what_a_resampling_overshoots_is_clipped_and_not_taken_for_hounsfield_units(root):
    image, label = values(3, SIDE, SIDE)
    image = image * 1.2 - 0.1
    write_slice(root, "case0005_slice000", image, label)
    assert np.array_equal(make(root, val_fraction=0.0).datasets["train"].raw(0)["image"][0].numpy(), in_bytes(image))


def test_the_labels_of_the_challenge(root):
    label = np.arange(14, dtype=np.int64).repeat(SIDE * SIDE // 14 + 1)[: SIDE * SIDE].reshape(SIDE, SIDE)
    write_slice(root, "case0005_slice000", values(0, SIDE, SIDE)[0], label)
    data = make(root, labels="btcv", val_fraction=0.0)
    mask = data.datasets["train"].raw(0)["mask"].numpy()
    for raw in range(14):
        (found,) = np.unique(mask[label == raw])
        organ = BTCV[raw - 1] if raw else "background"
        assert data.info.class_names[found] == (organ if organ in ORGANS else "background")


def test_a_split_can_be_sent_to_a_worker(root):
    split = pickle.loads(pickle.dumps(make(root).scan("test")))
    assert np.array_equal(split.read_mask(split.masks[0]).numpy(), values(100, 7, SIDE, SIDE)[1])
    assert split.read_image(split.source[0], 1).shape == (7, 1, SIDE, SIDE)


def spoil(root, what):
    """Spoils a sample -> the sentence for it, after its file's name."""
    path = root / "train_npz" / "case0005_slice000.npz"
    image, label = values(0, SIDE, SIDE)
    if what == "missing key":
        np.savez(path, image=image)
        return path, ": has no array 'label', only image"
    if what == "truncated":
        path.write_bytes(path.read_bytes()[:500])
        return path, ": cannot be read as an npz archive of numbers (BadZipFile)"
    if what == "objects":
        np.savez(path, image=np.array([[{}]], dtype=object), label=label)
        return path, ": cannot be read as an npz archive of numbers (ValueError)"
    if what == "text":
        np.savez(path, image=image.astype("U8"), label=label)
        return path, ": 'image' is <U8 of shape (24, 24), but numbers (H, W) are expected"
    if what == "volume":
        np.savez(path, image=image[None], label=label[None])
        return path, ": 'image' is float32 of shape (1, 24, 24), but numbers (H, W) are expected"
    if what == "label of another size":
        write_slice(root, path.stem, image, label[:, :20])
        return path, f": is 24x24 and its mask {path} is 20x24 (width x height)"
    if what == "raw label":
        label[3, 5] = 11
        write_slice(root, path.stem, image, label)
        return path, (
            ": holds the label 11, first at (x=5, y=3), which is none of 0..8; data.labels=btcv takes the challenge's "
            "own labels, 0..13"
        )
    if what == "fraction":
        label[3, 5] = 2.5
        write_slice(root, path.stem, image, label)
        return path, ": holds the label 2.5, first at (x=5, y=3), which is none of 0..8"
    if what == "NaN label":
        label[3, 5] = np.nan
        write_slice(root, path.stem, image, label)
        return path, ": holds the label nan, first at (x=5, y=3), which is none of 0..8"
    if what == "NaN":
        image[2, 2] = np.nan
        write_slice(root, path.stem, image, label)
        return path, ": the image has values that are no numbers (NaN or infinity)"
    if what == "8 bit":
        write_slice(root, path.stem, in_bytes(image), label)
        return path, ": the image has values from 0 to 255, which are neither 0..1 nor Hounsfield units"
    path = root / "test_vol_h5" / "case0001.npy.h5"
    image, label = values(100, 7, SIDE, SIDE)
    if what == "garbage volume":
        path.write_bytes(b"no volume")
        return path, ": cannot be read as an HDF5 file (OSError)"
    if what == "volume without labels":
        with h5py.File(path, "w") as file:
            file["image"] = image
        return path, ": has no array 'label', only image"
    if what == "empty volume":
        with h5py.File(path, "w") as file:
            file["image"], file["label"] = h5py.Empty("f"), label
        return path, ": 'image' is object of shape (), but numbers (D, H, W) are expected"
    if what == "depths":
        write_volume(root, "case0001", image, label[:5])
        return path, ": image and label have different shapes, (7, 24, 24) and (5, 24, 24)"
    if what == "depth last":
        write_volume(root, "case0001", image.transpose(1, 2, 0), label.transpose(1, 2, 0))
        return path, ": 'image' has the shape (24, 24, 7), which looks like (H, W, D); slices come first, (D, H, W)"
    label[4, 3, 5] = 200
    write_volume(root, "case0001", image, label)
    return path, ": holds the label 200, first at (x=5, y=3, z=4), which is none of 0..8"


BAD = ["missing key", "truncated", "objects", "text", "volume", "label of another size", "raw label", "fraction"]
BAD += [
    "NaN label",
    "NaN",
    "8 bit",
    "garbage volume",
    "volume without labels",
    "empty volume",
    "depths",
    "depth last",
    "label of a volume",
]


@pytest.mark.parametrize("what", BAD)
def test_a_bad_sample_is_refused_or_skipped(root, what, caplog):
    path, sentence = spoil(root, what)
    with pytest.raises(DataError) as caught:
        make(root, val_fraction=0.0)
    assert str(caught.value).startswith(f"{path}{sentence}")
    assert str(caught.value).endswith("; data.on_bad_sample=skip leaves such samples out")
    assert "\n" not in str(caught.value)
    data = make(root, val_fraction=0.0, on_bad_sample="skip")
    assert len(data.datasets["train"]) + len(data.datasets["test"]) == CASES * SLICES + 2 - 1
    assert f"skipped {path}{sentence}" in caplog.text


def test_wrong_folders_and_options_are_named(root):
    with pytest.raises(DataNotFoundError, match=r"nowhere \(data.root=.*\); expected in it: train_npz/\*.npz"):
        make(root / "nowhere")
    (root / "lists").mkdir()
    with pytest.raises(DataNotFoundError, match=r"there is no folder .*lists/train_npz; expected in .*: train_npz/\*"):
        make(root / "lists")
    (root / "lists" / "train_npz").mkdir()
    with pytest.raises(DataError, match=r"lists/train_npz holds no \*.npz; expected below"):
        make(root / "lists")
    with pytest.raises(DataError, match=r"data.labels='raw' is not transunet or btcv"):
        make(root, labels="raw")
