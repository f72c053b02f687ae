import pickle

import numpy as np
import pytest
import torch
from torchvision import datasets

from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.torchvision_sets import TorchvisionSet

from .writers import write_cifar, write_fashion_mnist, write_idx


def make(root, name, **options):
    options = {"val_fraction": 0.25, "batch_size": 8, "num_workers": 0} | options
    data = TorchvisionSet(name=name, root=str(root), **options)
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize(("name", "theirs"), [("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)])
def test_cifar_agrees_with_torchvision(tmp_path, monkeypatch, name, theirs):
    write_cifar(tmp_path, name, per_part=400)
    monkeypatch.setattr(theirs, "_check_integrity", lambda self: True)  # the fixture has other checksums
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *args: True)
    data = make(tmp_path, name)
    oracle = theirs(str(tmp_path), train=False)
    assert data.info.class_names == oracle.classes
    pixels = torch.from_numpy(oracle.data).permute(0, 3, 1, 2)
    assert torch.equal(data.datasets["test"].store.pixels, pixels)
    assert data.datasets["test"].labels.tolist() == oracle.targets
    oracle = theirs(str(tmp_path), train=True)
    train, val = data.datasets["train"], data.datasets["val"]
    together = torch.cat([train.store.pixels, val.store.pixels]).flatten(1)
    assert sorted(map(tuple, together.tolist())) == sorted(
        map(tuple, oracle.data.transpose(0, 3, 1, 2).reshape(-1, 3072).tolist())
    )
    assert len(val) == len(oracle) // 4


def test_fashion_mnist_agrees_with_torchvision(tmp_path):
    write_fashion_mnist(tmp_path)
    data = make(tmp_path, "fashion_mnist", image_size=28, in_chans=1, mean=(0.286,), std=(0.353,))
    oracle = datasets.FashionMNIST(str(tmp_path), train=False)
    assert data.info.class_names == oracle.classes
    assert torch.equal(data.datasets["test"].store.pixels[:, 0], oracle.data)
    assert data.datasets["test"].labels.tolist() == oracle.targets.tolist()
    bigger = make(tmp_path, "fashion_mnist", in_chans=1, mean=(0.286,), std=(0.353,))
    assert next(iter(bigger.test_dataloader()))["image"].shape == (8, 1, 32, 32)


def test_a_big_final_size_is_resized_at_every_read(tmp_path):
    write_cifar(tmp_path, "cifar10")
    lazy, eager = make(tmp_path, "cifar10", image_size=64, cache_gb=1e-4), make(tmp_path, "cifar10", image_size=64)
    assert lazy.datasets["test"].store.pixels.shape[-1] == 32
    assert eager.datasets["test"].store.pixels.shape[-1] == 64
    for a, b in zip(lazy.test_dataloader(), eager.test_dataloader()):
        assert torch.equal(a["image"], b["image"])


def test_colour_to_grey(tmp_path):
    write_cifar(tmp_path, "cifar10")
    data = make(tmp_path, "cifar10", in_chans=1)
    assert next(iter(data.train_dataloader()))["image"].shape == (8, 1, 32, 32)
    assert len(data.info.mean) == len(data.info.std) == 1


def test_missing_files_and_download(tmp_path, monkeypatch):
    with pytest.raises(DataNotFoundError) as caught:
        make(tmp_path, "cifar10")
    expected = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    assert f"{expected} is missing" in str(caught.value)
    assert "data.download=true fetches it" in str(caught.value)
    fetched = []

    class FakeDownload:
        def __init__(self, root, download):
            fetched.append((root, download))
            write_cifar(tmp_path, "cifar10")

    monkeypatch.setattr(datasets, "CIFAR10", FakeDownload)
    make(tmp_path, "cifar10", download=True)
    make(tmp_path, "cifar10", download=True)  # there already: not fetched again
    assert fetched == [(str(tmp_path), True)]


def test_a_failed_download_is_one_sentence(tmp_path, monkeypatch):
    def refuse(root, download):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, "CIFAR100", refuse)
    with pytest.raises(DataError, match=r"cifar100 could not be downloaded to .*no route to host"):
        make(tmp_path, "cifar100", download=True)


def test_broken_cifar_files_are_named(tmp_path):
    write_cifar(tmp_path, "cifar10")
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="data_batch_2 is corrupt or truncated"):
        make(tmp_path, "cifar10")
    path.write_bytes(pickle.dumps({"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2]}, protocol=2))
    with pytest.raises(DataError, match="data_batch_2 has 4 images and 3 labels"):
        make(tmp_path, "cifar10")
    path.write_bytes(pickle.dumps({"data": np.zeros((4, 100), np.uint8), "labels": [0, 1, 2, 3]}, protocol=2))
    with pytest.raises(DataError, match="data_batch_2 is not a CIFAR batch"):
        make(tmp_path, "cifar10")


def test_a_pickle_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    write_cifar(tmp_path, "cifar10")
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError, match="test_batch is corrupt"):
        make(tmp_path, "cifar10")
    assert not (tmp_path / "owned").exists()


def test_broken_idx_files_are_named(tmp_path):
    write_fashion_mnist(tmp_path)
    path = tmp_path / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte"
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte is truncated"):
        make(tmp_path, "fashion_mnist")
    path.write_bytes(b"\x1f\x8b" + content)
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte is not an idx file"):
        make(tmp_path, "fashion_mnist")


def test_labels_out_of_range(tmp_path, caplog):
    write_fashion_mnist(tmp_path)
    labels = np.arange(20) % 10
    labels[7] = 12
    write_idx(tmp_path / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte", labels)
    with pytest.raises(DataError, match=r"t10k/00007: label 12 is outside 0\.\.9"):
        make(tmp_path, "fashion_mnist")
    data = make(tmp_path, "fashion_mnist", on_bad_sample="skip")
    assert len(data.datasets["test"]) == 19
    assert data.sample_name("test", 7) == "t10k/00008"
    assert "1 of 20 test samples are bad and were skipped" in caplog.text
