"""Writes small data sets in their true on-disk formats."""

import pickle
from pathlib import Path

import numpy as np
from PIL import Image


def picture(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Smooth noise, so that JPEG keeps it roughly."""
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BILINEAR)


def write_folder(root: Path, counts: dict[str, dict[str, int]], size: tuple[int, int] = (32, 32), extension="png"):
    """counts: {"train": {"cat": 5, ...}, ...}; files root/train/cat/0000.png ..."""
    rng = np.random.default_rng(0)
    for split, classes in counts.items():
        for name, count in classes.items():
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                picture(rng, *size).save(folder / f"{i:04d}.{extension}")
    return root


def write_cifar(root: Path, name: str, per_part: int = 40) -> dict[str, tuple[np.ndarray, list[int]]]:
    """The pickles of CIFAR-10 or CIFAR-100 -> {part: (data (N, 3072), labels)}."""
    rng = np.random.default_rng(0)
    is_ten = name == "cifar10"
    folder = root / ("cifar-10-batches-py" if is_ten else "cifar-100-python")
    folder.mkdir(parents=True)
    classes = 10 if is_ten else 100
    written = {}
    for part in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"] if is_ten else ["train", "test"]:
        data = rng.integers(0, 256, (per_part, 3072), dtype=np.uint8)
        labels = [i % classes for i in range(per_part)]
        content = {"data": data, ("labels" if is_ten else "fine_labels"): labels}
        (folder / part).write_bytes(pickle.dumps(content, protocol=2))
        written[part] = (data, labels)
    names = [f"name{i}" for i in range(classes)]
    meta, key = ("batches.meta", "label_names") if is_ten else ("meta", "fine_label_names")
    (folder / meta).write_bytes(pickle.dumps({key: names}, protocol=2))
    return written


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


def write_fashion_mnist(root: Path, train: int = 60, test: int = 20) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    written = {}
    for part, count in (("train", train), ("t10k", test)):
        images, labels = rng.integers(0, 256, (count, 28, 28)), np.arange(count) % 10
        write_idx(root / "FashionMNIST" / "raw" / f"{part}-images-idx3-ubyte", images)
        write_idx(root / "FashionMNIST" / "raw" / f"{part}-labels-idx1-ubyte", labels)
        written[part] = (images, labels)
    return written
