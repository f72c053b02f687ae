"""Which LR file belongs to which HR picture: every accepted name, and what is ambiguous."""

from pathlib import Path

import pytest

from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.low_resolution_files import pair_low

NAMES = ("baby", "babyx4", "babyX4", "baby_x4", "baby_X4", "baby_LRBI_x4")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def paired(root, low=("low",), **options):
    pairs, bad = pair_low(root / "HR", [root / name for name in low], **{"scale": 4, "lr": "auto"} | options)
    return {pair.name: pair.low and Path(pair.low).relative_to(root).as_posix() for pair in pairs}, bad


@pytest.mark.parametrize("name", NAMES)
def test_every_name_that_is_listed_is_found(tmp_path, name):
    touch(tmp_path / "HR", "baby.png", "bird.png")
    touch(tmp_path / "low", f"{name}.bmp", f"{name.replace('baby', 'bird')}.png", "woman.png")
    assert paired(tmp_path) == ({"baby": f"low/{name}.bmp", "bird": f"low/{name.replace('baby', 'bird')}.png"}, [])


@pytest.mark.parametrize("name", ["babyx2", "baby_LRBI_x2", "babyx44", "bab", "baby4", "baby x4"])
def test_other_names_are_not(tmp_path, name):
    touch(tmp_path / "HR", "baby.png")
    touch(tmp_path / "low", f"{name}.png")
    pairs, bad = paired(tmp_path)
    assert pairs == {}
    assert len(bad) == 1
    assert bad[0].startswith(f"{tmp_path / 'HR' / 'baby.png'}: has no LR picture in {tmp_path / 'low'}, ")
    if name.endswith("x2"):
        assert bad[0].endswith(f"only {name}.png, which data.scale=2 takes")
    else:
        assert "may be called baby, babyx4, babyX4, baby_x4, baby_X4 or baby_LRBI_x4; data.lr=make" in bad[0]


def test_pictures_at_any_depth_have_their_lr_at_the_same(tmp_path):
    touch(tmp_path / "HR", "a/0.png", "b/0.png", ".decoded/0.png", "notes.txt")
    touch(tmp_path / "low", "a/0x4.png", "b/0.png")
    assert paired(tmp_path) == ({"a/0": "low/a/0x4.png", "b/0": "low/b/0.png"}, [])


def test_two_lr_pictures_of_one_are_ambiguous(tmp_path):
    touch(tmp_path / "HR", "baby.png", "bird.png")
    touch(tmp_path / "low", "baby.png", "babyx4.png", "bird.png", "bird.bmp")
    pairs, bad = paired(tmp_path)
    assert pairs == {}
    assert [f"may have {tmp_path / 'low'}" in sentence for sentence in bad] == [True, True]
    assert bad[0].endswith("as its LR picture; keep one of them")


def test_one_lr_picture_of_two_is_ambiguous(tmp_path):
    touch(tmp_path / "HR", "baby.png", "babyx4.png")
    touch(tmp_path / "low", "babyx4.png")
    _, bad = paired(tmp_path)
    assert len(bad) == 1
    assert "may be the LR picture of" in bad[0]


def test_two_hr_pictures_of_one_name_are_refused(tmp_path):
    touch(tmp_path / "HR", "baby.png", "baby.jpg", "bird.png")
    pairs, bad = paired(tmp_path, lr="make")
    assert pairs == {"bird": None}
    assert len(bad) == 1
    assert "has the same name as" in bad[0]


def test_lr_says_whether_files_are_read(tmp_path):
    touch(tmp_path / "HR", "baby.png")
    assert paired(tmp_path) == ({"baby": None}, [])
    assert paired(tmp_path, lr="make") == ({"baby": None}, [])
    with pytest.raises(
        DataNotFoundError, match=r"data.lr=files and none of the folders .*low is there; use data.lr=ma"
    ):
        paired(tmp_path, lr="files")
    with pytest.raises(DataNotFoundError, match=r"data.lr=files and .*HR has no folder for them; use data.lr=make"):
        paired(tmp_path, (), lr="files")
    touch(tmp_path / "low", "babyx4.png")
    assert paired(tmp_path) == paired(tmp_path, lr="files") == ({"baby": "low/babyx4.png"}, [])
    assert paired(tmp_path, lr="make") == ({"baby": None}, [])


def test_two_folders_of_lr_pictures_are_ambiguous(tmp_path):
    touch(tmp_path / "HR", "baby.png")
    touch(tmp_path / "low", "baby.png")
    touch(tmp_path / "other", "baby.png")
    with pytest.raises(DataError, match=r"low and .*other may both hold the LR pictures of .*HR; keep one"):
        paired(tmp_path, ("low", "other"))
    (tmp_path / "same").symlink_to(tmp_path / "low")  # as x4 and X4 where case does not count
    assert paired(tmp_path, ("low", "same"))[0] == {"baby": "low/baby.png"}


def test_a_folder_without_pictures_is_told(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"there is no folder .*HR; HR pictures are expected in it"):
        paired(tmp_path)
    touch(tmp_path / "HR", "notes.txt", ".hidden.png")
    with pytest.raises(DataError, match=r"HR holds no picture"):
        paired(tmp_path)
