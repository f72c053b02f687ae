"""python -m vantage.data.tile"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vantage.data.dota_labels import read_labels
from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.rotated_augment import RotatedAugment
from vantage.data.rotated_folder import RotatedFolder
from vantage.data.tile import FILL, Options, main, tile_folder, tiles_of

from .rotated_files import pixels, write_rotated, write_split

# on a picture of 96 x 120: whole in the first tile, cut by several, and far to the right
LABELS = (
    "imagesource:GoogleEarth\ngsd:0.5\n"
    "10 20 50 20 50 30 10 30 ship 0\n"
    "40 40 80 40 80 60 40 60 plane 1\n"
    "100.5 10 118 10 118 18 100.5 18 ship 0\n"
)
OPTIONS = Options(size=64, overlap=16)


@pytest.fixture
def source(tmp_path):
    return write_split(tmp_path / "train", {"P0001": LABELS, "P0002": "", "P0003": LABELS})


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tiles_show_the_picture_and_its_objects(source, tmp_path):
    counts = tile_folder(source, tmp_path / "out", OPTIONS)
    names = sorted(path.stem for path in (tmp_path / "out/images").iterdir())
    assert [name for name in names if name.startswith("P0001")] == [
        f"P0001__64__{x}___{y}" for x in (0, 48, 56) for y in (0, 32)
    ]
    assert sorted(path.stem for path in (tmp_path / "out/labelTxt").iterdir()) == names
    whole = pixels(source / "images/P0001.png")
    assert np.array_equal(pixels(tmp_path / "out/images/P0001__64__48___32.png"), whole[32:96, 48:112])

    def lines(name):
        return (tmp_path / "out/labelTxt" / f"{name}.txt").read_text().splitlines()

    # at (0, 0) the plane shows 24 of 40 columns: 0.6 of it
    assert lines("P0001__64__0___0") == ["10 20 50 20 50 30 10 30 ship 0", "40 40 80 40 80 60 40 60 plane 2"]
    # at (48, 0) it shows 32 of 40, and the ship 2 of 40; unclipped
    assert lines("P0001__64__48___0") == [
        "-38 20 2 20 2 30 -38 30 ship 2",
        "-8 40 32 40 32 60 -8 60 plane 1",
        "52.5 10 70 10 70 18 52.5 18 ship 2",
    ]
    assert lines("P0001__64__56___0")[-1] == "44.5 10 62 10 62 18 44.5 18 ship 0"
    assert lines("P0002__64__0___0") == []
    assert (counts.pictures, counts.tiles, counts.unchanged) == (3, 18, 0)
    assert str(counts).startswith("18 tiles of 3 pictures (0 were done before), ")


def test_a_small_picture_is_padded(tmp_path):
    source = write_split(tmp_path / "small", {"P": "1 1 9 1 9 9 1 9 ship 0\n"}, (40, 100))
    tile_folder(source, tmp_path / "out", OPTIONS)
    tile = pixels(tmp_path / "out/images/P__64__36___0.png")
    assert np.array_equal(tile[:40], pixels(source / "images/P.png")[:, 36:])
    assert (tile[40:] == FILL).all()


def test_several_rates(source, tmp_path):
    options = Options(size=64, overlap=16, rates=(0.5, 1.0, 2.0))
    tile_folder(source, tmp_path / "out", options)
    names = {path.stem for path in (tmp_path / "out/images").iterdir() if path.stem.startswith("P0001")}
    assert {name.split("__")[1] for name in names} == {"128", "64", "32"}
    assert "P0001__128__0___0" in names
    whole = Image.open(source / "images/P0001.png")
    small = Image.open(tmp_path / "out/images/P0001__32__24___24.png")
    assert small.size == (64, 64)
    expected = whole.crop((24, 24, 56, 56)).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(small), np.asarray(expected))
    objects = read_labels(tmp_path / "out/labelTxt/P0001__128__0___0.txt").objects
    assert objects[0].points == (5, 10, 25, 10, 25, 15, 5, 15)
    assert [each.difficult for each in objects] == [0, 1, 0]


def test_windows_that_a_picture_hardly_fills_are_left_out():
    # 64 wide windows on a picture of 30 x 200: each is filled to 47 %, which is the best there is
    assert len(tiles_of("P", 30, 200, OPTIONS)) == 4
    assert [tile.size for tile in tiles_of("P", 60, 60, Options(size=64, overlap=16, rates=(1.0, 0.5)))] == [64, 128]


def test_running_it_again_changes_nothing(source, tmp_path):
    out = tmp_path / "out"
    tile_folder(source, out, OPTIONS)
    before, times = content(out), {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    counts = tile_folder(source, out, OPTIONS)
    assert (counts.pictures, counts.unchanged, counts.tiles) == (3, 3, 18)
    assert content(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times


def test_it_goes_on_after_an_interruption(source, tmp_path, monkeypatch):
    tile_folder(source, tmp_path / "whole", OPTIONS)
    out, saved = tmp_path / "out", []
    save = Image.Image.save

    def interrupted(self, path, *args, **kwargs):
        saved.append(path)
        if len(saved) == 9:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        save(self, path, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tile_folder(source, out, OPTIONS)
    monkeypatch.undo()
    assert not list(out.rglob("*.partial"))
    counts = tile_folder(source, out, OPTIONS)
    assert (counts.pictures, counts.unchanged) == (3, 1)
    assert content(out) == content(tmp_path / "whole")


def test_what_changed_is_done_again(source, tmp_path):
    out = tmp_path / "out"
    tile_folder(source, out, OPTIONS)
    (source / "labelTxt/P0002.txt").write_text("1 1 9 1 9 9 1 9 ship 0\n")
    (out / "images/P0003__64__0___0.png").unlink()
    assert tile_folder(source, out, OPTIONS).unchanged == 1
    assert (out / "labelTxt/P0002__64__0___0.txt").read_text() == "1 1 9 1 9 9 1 9 ship 0\n"
    assert (out / "images/P0003__64__0___0.png").is_file()
    # a smaller picture has fewer tiles, and none of the old ones stays
    Image.new("RGB", (60, 60)).save(source / "images/P0001.png")
    tile_folder(source, out, OPTIONS)
    assert [path.stem for path in (out / "images").glob("P0001*")] == ["P0001__64__0___0"]
    assert len(list((out / "labelTxt").glob("P0001*"))) == 1


def test_tiles_of_other_options_are_not_mixed(source, tmp_path):
    tile_folder(source, tmp_path / "out", OPTIONS)
    with pytest.raises(DataError, match=r"out holds tiles made with size 64, not 96; choose another folder, or remove"):
        tile_folder(source, tmp_path / "out", Options(size=96, overlap=16))
    for options, sentence in {
        (("size", 8),): "--size 8 is too small; tiles have 16 pixels or more",
        (("size", 64), ("overlap", 64)): "--overlap 64 does not fit tiles of 64; it is in 0..63",
        (("rates", (0.0,)),): "--rates 0 is not in 0..64",
        (("rates", ()),): "--rates is empty",
    }.items():
        with pytest.raises(DataError, match=sentence):
            Options(**dict(options))


def test_processes_make_the_same_tiles(source, tmp_path):
    tile_folder(source, tmp_path / "one", OPTIONS)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vantage.data.tile", str(source), str(tmp_path / "two"), "--size", "64"]
    ran = subprocess.run(
        [*command, "--overlap", "16", "--jobs", "2"], capture_output=True, text=True, env=environment, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"{tmp_path / 'two'}: 18 tiles of 3 pictures (0 were done before), ")
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_bad_samples(source, tmp_path, capsys):
    (source / "labelTxt/P0001.txt").write_text(LABELS + "1 2 3 ship 0\n")
    (source / "images/P0002.png").write_bytes(b"nothing")
    (source / "labelTxt/P0004.txt").write_text("")
    arguments = [str(source), str(tmp_path / "out"), "--size", "64", "--overlap", "16", "--jobs", "1"]
    for _ in range(2):  # also when what could be done is done
        assert main(arguments) == 1
        error = capsys.readouterr().err.lstrip("\n")  # of rich's progress bar
        assert error.startswith(f"{source / 'labelTxt/P0004.txt'}: has no picture ")
        assert error.endswith(" (and 2 more); --skip-bad leaves such samples out\n")
    assert main([*arguments, "--skip-bad"]) == 0
    out, error = capsys.readouterr()
    assert f"skipped {source / 'labelTxt/P0001.txt'}, line 6: has 3 numbers before 'ship'" in error
    assert f"skipped {source / 'images/P0002.png'}: cannot be decoded" in error
    assert out.endswith("; 3 bad samples were left out\n")
    with pytest.raises(DataNotFoundError, match="pictures are expected in it"):
        tile_folder(tmp_path / "nowhere", tmp_path / "out", OPTIONS)


def test_pictures_without_labels_are_tiled_for_prediction(source, tmp_path):
    for path in (source / "labelTxt").iterdir():
        path.unlink()
    (source / "labelTxt").rmdir()
    assert tile_folder(source, tmp_path / "out", OPTIONS).tiles == 18
    assert not (tmp_path / "out/labelTxt").exists()
    Image.new("RGB", (9, 9)).save(source / "images/P0002.tif")
    with pytest.raises(DataError, match=r"P0002.tif: has the same name as .*P0002.png, and tiles are called by it"):
        tile_folder(source, tmp_path / "out", OPTIONS)


def test_tiles_are_data_to_train_on(tmp_path):
    root = write_rotated(tmp_path / "mine", {"train": {"P0001": LABELS}, "val": {"P0001": LABELS}})
    tile_folder(root / "train", root / "train_tiles", OPTIONS)
    options = {"image_size": 64, "num_workers": 0, "augment": RotatedAugment(), "train": "train_tiles"}
    data = RotatedFolder(root=str(root), **options)
    data.setup()
    sample = next(s for s in data.datasets["train"].__getitems__(list(range(6))) if s["name"] == "P0001__64__0___0")
    assert sample["labels"].tolist() == [1, 0]
    assert sample["difficult"].tolist() == [False, True]
    assert sample["image"].shape == (3, 64, 64)


def test_records_are_plain(source, tmp_path):
    tile_folder(source, tmp_path / "out", OPTIONS)
    record = json.loads((tmp_path / "out/.records/P0001.json").read_text())
    assert record["tiles"] == 6
    assert len(record["files"]) == 12
