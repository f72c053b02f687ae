import json

import pytest

from vantage.data.augment import Augment
from vantage.data.errors import DataError
from vantage.data.imagenet import ImageNet

from .writers import write_folder

SYNSETS = ["n03126707", "n01440764", "n02012849"]
LABEL_ORDER = sorted(SYNSETS)
COUNTS = {"train": dict.fromkeys(SYNSETS, 10), "val": dict.fromkeys(SYNSETS, 2)}


def make(root, val_fraction=0.0):
    options = {"image_size": 32, "center_crop": 0.875, "batch_size": 4, "augment": Augment()}
    data = ImageNet(root=str(root), val_fraction=val_fraction, **options)
    data.setup()
    return data


def test_labels_follow_sorted_synsets_and_val_tests(tmp_path):
    data = make(write_folder(tmp_path, COUNTS, size=(40, 48)))
    assert data.info.class_names == LABEL_ORDER
    for split in ("train", "val", "test"):
        dataset = data.datasets[split]
        assert all(LABEL_ORDER[int(label)] in name for label, name in zip(dataset.labels, dataset.names))
    assert data.datasets["test"].names == data.datasets["val"].names
    assert len(data.datasets["test"]) == 6


def test_val_fraction_keeps_the_official_val_for_testing(tmp_path):
    data = make(write_folder(tmp_path, COUNTS), val_fraction=0.2)
    assert {split: len(dataset) for split, dataset in data.datasets.items()} == {"train": 24, "val": 6, "test": 6}
    assert all(name.startswith("train/") for name in data.datasets["val"].names)
    assert all(name.startswith("val/") for name in data.datasets["test"].names)


@pytest.mark.parametrize("above", [False, True])
def test_human_names_and_their_doubles(tmp_path, above):
    root = write_folder(tmp_path / "Data" / "CLS-LOC", COUNTS)
    place = tmp_path if above else root
    (place / "LOC_synset_mapping.txt").write_text(
        "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\nn99999999 other\n"
    )
    assert make(root).info.class_names == ["tench", "crane (n02012849)", "crane (n03126707)"]


def test_names_from_json(tmp_path):
    root = write_folder(tmp_path, COUNTS)
    (root / "imagenet_class_index.json").write_text(
        json.dumps({str(i): [synset, f"big_{i}"] for i, synset in enumerate(LABEL_ORDER)})
    )
    assert make(root).info.class_names == ["big 0", "big 1", "big 2"]
    (root / "imagenet_class_index.json").write_text("[1, 2]")
    with pytest.raises(DataError, match=r"imagenet_class_index.json is not a mapping"):
        make(root)


def test_wrong_layouts_are_named(tmp_path):
    root = write_folder(tmp_path, {"train": {"n01440764": 2}})
    with pytest.raises(DataError, match=r"there is no folder .*val; ImageNet is expected in data.root/val/<synset>/"):
        make(root)
    write_folder(root, {"train": {"dogs": 2}, "val": {"n01440764": 1}})
    with pytest.raises(DataError, match=r"train/dogs is not named by a synset"):
        make(root)


def test_a_flat_val_folder_is_named(tmp_path):
    root = write_folder(tmp_path, {"train": COUNTS["train"]})
    (root / "val").mkdir()
    (root / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"x")
    with pytest.raises(DataError, match=r"val holds no image in a class folder"):
        make(root)
