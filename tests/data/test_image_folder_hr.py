import pytest

from vantage.data.errors import DataError
from vantage.data.image_folder_hr import ImageFolderHR

from .super_resolution_files import write_set

NAMES = [f"{i}" for i in range(8)]


def opened(root, **options):
    data = ImageFolderHR(root=str(root), **{"image_size": 8, "batch_size": 2, "num_workers": 0} | options)
    data.setup("fit")
    return data


def names(data):
    return {split: dataset.names for split, dataset in data.datasets.items()}


@pytest.fixture
def root(tmp_path):
    write_set(tmp_path / "hr" / "a", None, NAMES[:4])
    write_set(tmp_path / "hr" / "b" / "c", None, NAMES[:4])
    return tmp_path / "hr"


def test_pictures_at_any_depth_and_a_share_validates(root):
    found = names(opened(root, val_fraction=0.25))
    assert sorted(found["train"] + found["val"]) == [f"{folder}/{i}" for folder in ("a", "b/c") for i in NAMES[:4]]
    assert len(found["val"]) == 2
    assert found["test"] == found["val"]


def test_other_folders_validate_and_test(root, tmp_path):
    write_set(tmp_path / "val", None, ["v"])
    write_set(tmp_path / "test", None, ["t", "u"])
    found = names(opened(root, val_root=str(tmp_path / "val"), test_root=str(tmp_path / "test")))
    assert len(found["train"]) == 8
    assert (found["val"], found["test"]) == (["v"], ["t", "u"])


def test_folders_below_the_root_that_validate_or_test_do_not_train(root, caplog):
    caplog.set_level("INFO")
    write_set(root / "d", None, ["t"])
    found = names(opened(root, val_root=str(root / "b"), test_root=str(root / "d")))
    assert found == {"train": [f"a/{i}" for i in NAMES[:4]], "val": [f"c/{i}" for i in NAMES[:4]], "test": ["t"]}
    assert "5 pictures that validate or test are left out of training" in caplog.text
    with pytest.raises(DataError, match=r"the train split has no picture"):
        opened(root, val_root=str(root))


def test_benchmark_pictures_do_not_train(root):
    found = names(opened(root, benchmarks=str(root), sets=["a"], val_fraction=0.25))
    assert not [name for name in found["train"] + found["val"] if name.startswith("a/")]
    assert found["test"] == NAMES[:4]


def test_there_are_no_lr_files(root):
    with pytest.raises(DataError, match=r"data.lr=files and .*hr has no folder for them; use data.lr=make"):
        opened(root, lr="files")


def test_an_empty_folder_is_told(tmp_path):
    with pytest.raises(DataError, match=r"holds no picture; expected below .*: HR pictures, at any depth"):
        opened(tmp_path)
    with pytest.raises(DataError, match=r"there is no folder .*nowhere \(data.root="):
        opened(tmp_path / "nowhere")
