"""CIFAR-10, CIFAR-100 and Fashion-MNIST in the files that torchvision downloads."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vantage.data.augment import Augment
from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.module import ClassificationData, RawSplit
from vantage.data.splits import stratified_split

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

FILES = {
    "cifar10": {
        "folder": "cifar-10-batches-py",
        "train": [f"data_batch_{i}" for i in range(1, 6)],
        "test": ["test_batch"],
        "meta": "batches.meta",
        "label_key": "labels",
        "names_key": "label_names",
    },
    "cifar100": {
        "folder": "cifar-100-python",
        "train": ["train"],
        "test": ["test"],
        "meta": "meta",
        "label_key": "fine_labels",
        "names_key": "fine_label_names",
    },
    "fashion_mnist": {"folder": "FashionMNIST/raw", "train": ["train"], "test": ["t10k"]},
}
TORCHVISION_NAMES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion_mnist": "FashionMNIST"}


class TorchvisionSet(ClassificationData):
    """val_fraction of the official training part is the validation split; the official test part is the test split."""

    def __init__(
        self,
        *,
        name: str,  # "cifar10" | "cifar100" | "fashion_mnist"
        root: str,
        download: bool = False,
        image_size: int | Sequence[int] = 32,
        in_chans: int = 3,
        mean: Sequence[float] = (0.4914, 0.4822, 0.4465),
        std: Sequence[float] = (0.2470, 0.2435, 0.2616),
        interpolation: str = "bilinear",
        center_crop: float = 1.0,
        val_fraction: float = 0.05,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        drop_last: bool = True,
        num_workers: int | str = "auto",
        cache: bool | str = "auto",
        cache_gb: float = 2.0,
        on_bad_sample: str = "raise",
        seed: int = 0,
        split_seed: int = 0,
        augment: Augment | dict | None = None,
        default_augment: Augment | None = None,
    ) -> None:
        super().__init__(
            image_size=image_size,
            in_chans=in_chans,
            mean=mean,
            std=std,
            interpolation=interpolation,
            center_crop=center_crop,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            drop_last=drop_last,
            num_workers=num_workers,
            cache=cache,
            cache_gb=cache_gb,
            on_bad_sample=on_bad_sample,
            seed=seed,
            split_seed=split_seed,
            augment=augment,
            default_augment=default_augment,
        )
        if name not in FILES:
            raise DataError(f"data.name={name!r} is not one of {', '.join(FILES)}")
        if not 0 <= val_fraction < 1:
            raise DataError(f"data.val_fraction={val_fraction} is not in [0, 1)")
        self.name, self.root, self.download, self.val_fraction = name, Path(root), download, val_fraction
        self.num_classes = 100 if name == "cifar100" else 10
        self.folder = self.root / FILES[name]["folder"]

    def prepare_data(self) -> None:
        missing = [path for path in self._paths() if not path.is_file()]
        if not missing:
            return
        if not self.download:
            raise DataNotFoundError(
                f"{self.name} is not complete: {missing[0].absolute()} is missing (data.root={self.root}); "
                "data.download=true fetches it"
            )
        from torchvision import datasets

        try:
            getattr(datasets, TORCHVISION_NAMES[self.name])(str(self.root), download=True)
        except Exception as error:
            raise DataError(f"{self.name} could not be downloaded to {self.root.absolute()}: {error}") from None

    def open(self) -> tuple[dict[str, RawSplit], list[str]]:
        for path in self._paths():
            if not path.is_file():
                raise DataNotFoundError(f"{self.name}: {path.absolute()} is missing; data.download=true fetches it")
        splits = {}
        for split in ("train", "test"):
            parts = [self._read_part(part) for part in FILES[self.name][split]]
            pixels, labels = (torch.cat(tensors) for tensors in zip(*parts))
            names = [f"{part}/{i:05d}" for part, (_, y) in zip(FILES[self.name][split], parts) for i in range(len(y))]
            splits[split] = RawSplit(pixels, labels, names)
        if self.val_fraction:
            val, train = stratified_split(splits["train"].labels, [self.val_fraction], self.split_seed)
            splits |= {"train": splits["train"].select(train), "val": splits["train"].select(val)}
        return splits, self._class_names()

    def _paths(self) -> list[Path]:
        files = FILES[self.name]
        parts = [*files["train"], *files["test"]]
        if "meta" in files:
            return [self.folder / name for name in [*parts, files["meta"]]]
        return [self.folder / f"{part}-{kind}" for part in parts for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]

    def _read_part(self, part: str) -> tuple[Tensor, Tensor]:
        """One file (CIFAR) or pair of files -> uint8 (N, C, H, W), int64 (N,)."""
        if "meta" in FILES[self.name]:
            path = self.folder / part
            content = _unpickle(path)
            try:
                pixels = torch.from_numpy(np.asarray(content["data"], dtype=np.uint8)).view(-1, 3, 32, 32)
                labels = torch.tensor(content[FILES[self.name]["label_key"]], dtype=torch.int64)
            except Exception as error:
                raise DataError(f"{path} is not a CIFAR batch: {_reason(error)}") from None
        else:
            path = self.folder / f"{part}-images-idx3-ubyte"
            pixels = read_idx(path, 3)[:, None]
            labels = read_idx(self.folder / f"{part}-labels-idx1-ubyte", 1).long()
        if len(pixels) != len(labels) or not len(labels):
            raise DataError(f"{path} has {len(pixels)} images and {len(labels)} labels")
        return pixels, labels

    def _class_names(self) -> list[str]:
        files = FILES[self.name]
        if "meta" not in files:
            return list(FASHION_CLASSES)
        path = self.folder / files["meta"]
        try:
            return [str(name) for name in _unpickle(path)[files["names_key"]]]
        except (KeyError, TypeError):
            raise DataError(f"{path} has no {files['names_key']}") from None


def read_idx(path: Path, dimensions: int) -> Tensor:
    """A file of LeCun's idx format: two zeros, 8 (uint8), the number of dimensions, big-endian sizes, values."""
    content = path.read_bytes()
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(f"{path} is not an idx file of uint8 with {dimensions} dimensions")
    shape = np.frombuffer(content, dtype=">u4", count=dimensions, offset=4).tolist()
    if len(content) - header != np.prod(shape):
        raise DataError(f"{path} is truncated or too long: {len(content) - header} bytes for the shape {shape}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(shape)


class _PlainUnpickler(pickle.Unpickler):
    """Refuses everything but numpy arrays, so that a foreign file cannot run code."""

    def find_class(self, module: str, name: str) -> object:
        allowed = {"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"}
        if (module.split(".")[0] == "numpy" and name in allowed) or (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it wants to load {module}.{name}")


def _unpickle(path: Path) -> dict:
    try:
        with open(path, "rb") as file:
            return _PlainUnpickler(file, encoding="latin1").load()
    except Exception as error:  # whatever broken bytes lead to
        raise DataError(f"{path} is corrupt or truncated: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
