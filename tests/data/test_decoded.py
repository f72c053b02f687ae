"""Decoded pictures on disk: up to date or decoded again, shared between processes, or one sentence why not."""

import os
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from vantage.data.decoded import PicturesInMemory, PicturesOnDisk, decode_into, decoded_file, require_room
from vantage.data.errors import DataError
from vantage.data.ground_truth import read_ground_truth

from .super_resolution_files import noise, write

SIZES = [(20, 30), (1, 1), (17, 5)]
SHAPES = [(3, *size) for size in SIZES]


@pytest.fixture
def sources(tmp_path):
    return [str(write(tmp_path / "hr" / f"{i}.png", noise(i, size))) for i, size in enumerate(SIZES)]


def on_disk(sources, decoded_dir=None):
    return PicturesOnDisk([decoded_file(source, "rgb", decoded_dir) for source in sources], sources, SHAPES)


class Reader:
    """Decodes, and counts what it decoded."""

    def __init__(self, sources):
        self.sources, self.calls = sources, []

    def __call__(self, index):
        self.calls.append(index)
        return [read_ground_truth(self.sources[index], 3)]


def fill(place, reader):
    return decode_into(reader, reader.sources, [place], "pictures")


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_what_was_put_is_read(sources, kind):
    place = PicturesInMemory(SHAPES) if kind == "memory" else on_disk(sources)
    assert fill(place, Reader(sources)) == {}
    for i, size in enumerate(SIZES):
        assert np.array_equal(place.read(i).permute(1, 2, 0).numpy(), noise(i, size))
        assert place.read(i).dtype == torch.uint8
    kept = place.keep([2, 0])
    assert np.array_equal(kept.read(0).permute(1, 2, 0).numpy(), noise(2, SIZES[2]))
    assert np.array_equal(kept.read(1).permute(1, 2, 0).numpy(), noise(0, SIZES[0]))


def test_writing_to_what_was_read_does_not_change_the_file(sources):
    place = on_disk(sources)
    fill(place, Reader(sources))
    place.read(0).fill_(0)
    assert np.array_equal(place.read(0).permute(1, 2, 0).numpy(), noise(0, SIZES[0]))


def test_what_is_there_is_not_decoded_again(sources):
    fill(on_disk(sources), Reader(sources))
    again = Reader(sources)
    fill(on_disk(sources), again)
    assert again.calls == []


def test_a_changed_source_is_decoded_again_and_no_other(sources):
    fill(on_disk(sources), Reader(sources))
    write_time = os.stat(sources[1]).st_mtime
    write(Path(sources[1]), noise(77, SIZES[1]))
    os.utime(sources[1], (write_time + 10, write_time + 10))
    again = Reader(sources)
    fill(on_disk(sources), again)
    assert again.calls == [1]
    assert np.array_equal(on_disk(sources).read(1).permute(1, 2, 0).numpy(), noise(77, SIZES[1]))


def test_a_cut_file_is_decoded_again(sources):
    place = on_disk(sources)
    fill(place, Reader(sources))
    times = os.stat(place.files[0])
    place.files[0].write_bytes(place.files[0].read_bytes()[:-1])
    os.utime(place.files[0], ns=(times.st_atime_ns, times.st_mtime_ns))
    again = Reader(sources)
    fill(on_disk(sources), again)
    assert again.calls == [0]


def test_an_interrupted_write_leaves_nothing_that_counts(sources, monkeypatch):
    place = on_disk(sources)
    monkeypatch.setattr("vantage.data.decoded.os.utime", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        place.put(0, read_ground_truth(sources[0], 3))
    assert not place.has(0)
    assert list(place.files[0].parent.iterdir()) == []


def test_a_picture_that_cannot_be_decoded_is_told_and_the_others_are_there(sources):
    with open(sources[1], "wb") as file:
        file.write(b"no picture")
    place = on_disk(sources)
    bad = fill(place, Reader(sources))
    assert list(bad) == [1]
    assert bad[1].startswith(f"{sources[1]}: cannot be decoded")
    assert [place.has(i) for i in range(3)] == [True, False, True]


def test_a_picture_of_another_size_than_its_header_tells_is_bad(sources):
    place = PicturesOnDisk(on_disk(sources).files, sources, [(3, 20, 31), *SHAPES[1:]])
    assert fill(place, Reader(sources)) == {0: f"{sources[0]}: is not of the size that its header tells"}


def test_files_of_equal_names_do_not_meet_in_one_folder(tmp_path):
    places = {decoded_file(str(tmp_path / part / "hr" / "0.png"), "rgb", tmp_path / "d") for part in ("a", "b")}
    assert len(places) == 2
    assert {place.parent.parent for place in places} == {tmp_path / "d"}
    assert decoded_file(str(tmp_path / "a" / "0.png"), "rgb", None) == tmp_path / "a" / ".decoded" / "0.png.rgb"


def test_a_folder_that_cannot_be_written_to_is_named(sources, tmp_path):
    (tmp_path / "taken").write_text("a file")
    place = on_disk(sources, tmp_path / "taken")
    sentence = r"decoded pictures cannot be written to .*taken.* \(.+\); give data.decoded_dir=FOLDER"
    with pytest.raises(DataError, match=sentence):
        require_room([place])
    with pytest.raises(DataError, match=sentence):
        fill(place, Reader(sources))


def test_a_disk_that_is_too_small_is_told_before_decoding(sources, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    needed = sum(3 * height * width for height, width in SIZES)
    monkeypatch.setattr("vantage.data.decoded.shutil.disk_usage", lambda folder: usage(9, 9, needed - 1))
    with pytest.raises(DataError, match=r"\.decoded \(0.0 GB needed, 0.0 GB free\)"):
        require_room([on_disk(sources)])
    monkeypatch.setattr("vantage.data.decoded.shutil.disk_usage", lambda folder: usage(9, 9, needed))
    require_room([on_disk(sources)])
    with pytest.raises(DataError, match=r"GB needed"):
        require_room([on_disk(sources), on_disk(sources, tmp_path / "other")])  # on one disk
    fill(on_disk(sources), Reader(sources))
    monkeypatch.setattr("vantage.data.decoded.shutil.disk_usage", lambda folder: usage(9, 9, 0))
    require_room([on_disk(sources)])  # nothing is missing


def test_a_decoded_picture_that_is_gone_is_told(sources):
    place = on_disk(sources)
    fill(place, Reader(sources))
    place.files[0].unlink()
    with pytest.raises(DataError, match=r"0.png.rgb: was a decoded picture and is gone or cut"):
        place.read(0)


def test_reading_keeps_no_file_open(sources):
    """A process may have 1,024 files open, and data sets have more pictures."""
    fds = "/proc/self/fd"
    if not os.path.isdir(fds):
        pytest.skip("no list of open files here")
    place = on_disk(sources)
    fill(place, Reader(sources))
    before = len(os.listdir(fds))
    for _ in range(50):
        place.read(0)[:, :3, :3].clone()
    assert len(os.listdir(fds)) == before
