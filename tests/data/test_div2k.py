"""DIV2K as released and as EDSR's release has it; 0801 to 0900 never train."""

import shutil

import numpy as np
import pytest

from vantage.data.div2k import DIV2K
from vantage.data.errors import DataError, DataNotFoundError

from .super_resolution_files import reduced, samples, shown, target, write_set

TRAIN, VALID = ["0001", "0002", "0800"], ["0801", "0900"]


@pytest.fixture
def root(tmp_path):
    for part, names in (("train", TRAIN), ("valid", VALID)):
        for scale in (2, 4):
            folder = tmp_path / f"DIV2K_{part}_LR_bicubic" / f"X{scale}"
            write_set(tmp_path / f"DIV2K_{part}_HR", folder, names, scale=scale)
    return tmp_path


def opened(root, stage="fit", **options):
    data = DIV2K(root=str(root), **{"image_size": 8, "batch_size": 1, "num_workers": 0} | options)
    data.setup(stage)
    return data


def names(data):
    return {split: dataset.names for split, dataset in data.datasets.items()}


def values(written):
    """Of HR and LR, told apart by what they are and not by where they lie."""
    return {name: (high.sum(), low.sum()) for name, (high, low) in written.items()}


@pytest.mark.parametrize("scale", [2, 4])
def test_the_layout_of_the_release(root, tmp_path, scale, caplog):
    caplog.set_level("INFO")
    data = opened(root, scale=scale)
    assert names(data) == {"train": TRAIN, "val": VALID, "test": VALID}
    assert f"train: 3 pictures, x{scale}, 3 LR read" in caplog.text
    written = write_set(tmp_path / "again", tmp_path / "low", VALID, scale=scale)
    for name, sample in samples(data.val_dataloader()).items():
        assert np.array_equal(target(sample), written[name][0])
        assert np.array_equal(shown(data, sample), written[name][1])
    patches = {sample["name"] for batch in data.train_dataloader() for sample in batch}
    assert patches == set(TRAIN)


def test_small_letters_serve_as_well(root):
    (root / "DIV2K_train_LR_bicubic" / "X4").rename(root / "DIV2K_train_LR_bicubic" / "x4")
    data = opened(root, scale=4, lr="files")
    assert names(data)["train"] == TRAIN


def test_without_lr_files_they_are_made(root, caplog):
    caplog.set_level("INFO")
    data = opened(root, scale=3)
    assert "train: 3 pictures, x3, 3 LR made, rounded each pass" in caplog.text
    sample = samples(data.val_dataloader())["0801"]
    assert np.abs(shown(data, sample).astype(int) - reduced(target(sample), 3)).max() <= 1
    with pytest.raises(DataNotFoundError, match=r"data.lr=files and none of the folders .*DIV2K_train_LR_bicubic.X3"):
        opened(root, scale=3, lr="files")


def test_edsrs_folder_of_all_900(root):
    for part in ("HR", "LR_bicubic"):
        shutil.copytree(root / f"DIV2K_valid_{part}", root / f"DIV2K_train_{part}", dirs_exist_ok=True)
        shutil.rmtree(root / f"DIV2K_valid_{part}")
    assert names(opened(root, lr="files")) == {"train": TRAIN, "val": VALID, "test": VALID}


def test_what_validates_never_trains(root):
    shutil.copytree(root / "DIV2K_valid_HR", root / "DIV2K_train_HR", dirs_exist_ok=True)
    assert names(opened(root, lr="make")) == {"train": TRAIN, "val": VALID, "test": VALID}


def test_sub_images_are_split_by_the_picture_that_they_are_of(tmp_path):
    parts = [f"{number}_s{part:03d}" for number in ("0001", "0002", "0801") for part in (1, 2, 3)]
    write_set(tmp_path / "DIV2K_train_HR", None, parts)
    assert names(opened(tmp_path)) == {"train": parts[:6], "val": parts[6:], "test": parts[6:]}
    shutil.rmtree(tmp_path / "DIV2K_train_HR")
    write_set(tmp_path / "DIV2K_train_HR", None, parts[:6])
    found = names(opened(tmp_path, val_fraction=0.5))
    assert len(found["val"]) == len(found["train"]) == 3
    assert len({name[:4] for name in found["val"]}) == len({name[:4] for name in found["train"]}) == 1


def test_another_folder_may_validate(root, tmp_path):
    write_set(tmp_path / "mine", None, ["x", "y"])
    write_set(tmp_path / "other", None, ["z"])
    data = opened(root, val_root=str(tmp_path / "mine"), test_root=str(tmp_path / "other"))
    assert names(data) == {"train": TRAIN, "val": ["x", "y"], "test": ["z"]}


def test_test_without_test_pictures_is_on_those_that_validate_and_says_so(root, caplog):
    caplog.set_level("INFO")
    data = opened(root)
    assert data.datasets["test"] is data.datasets["val"]
    assert caplog.text.count("the val pictures validate and test, so that the best checkpoint is picked on what") == 1
    assert {sample["set"] for (sample,) in data.test_dataloader()} == {"val"}
    alone = opened(root, "test")
    assert names(alone) == {"test": VALID}
    assert {sample["set"] for (sample,) in alone.test_dataloader()} == {"val"}


def test_a_benchmark_tests_instead(root, tmp_path):
    for name, pictures in {"Set5": ["baby", "bird"], "Set14": ["baboon"]}.items():
        write_set(tmp_path / "sets" / name / "HR", tmp_path / "sets" / name / "LR_bicubic" / "X2", pictures)
    data = opened(root, benchmarks=str(tmp_path / "sets"), sets=["Set5", "Set14"])
    assert names(data) == {"train": TRAIN, "val": VALID, "test": ["baby", "bird", "baboon"]}
    assert [sample["set"] for (sample,) in data.test_dataloader()] == ["Set5", "Set5", "Set14"]


def test_what_is_missing_is_named(root, tmp_path):
    with pytest.raises(
        DataNotFoundError, match=r"there is no folder .*nowhere \(data.root=.*expected in it: DIV2K_train"
    ):
        opened(tmp_path / "nowhere")
    (root / "DIV2K_train_LR_bicubic" / "X2" / "0002x2.png").unlink()
    with pytest.raises(
        DataError,
        match=r"0002.png: has no LR picture in .*X2, where it may be called 0002, 0002x2, .*; data.lr=make makes .*; "
        r"data.on_bad_sample=skip leaves",
    ):
        opened(root)
    assert names(opened(root, on_bad_sample="skip"))["train"] == ["0001", "0800"]
    assert names(opened(root, lr="make"))["train"] == TRAIN
    shutil.rmtree(root / "DIV2K_train_HR")
    with pytest.raises(
        DataNotFoundError, match=r"no folder .*DIV2K_train_HR; HR pictures are expected in it; expected below"
    ):
        opened(root)
