"""Label files written by hand, in the format of the DOTA releases."""

import pytest

from vantage.data.dota_labels import DotaLabels, DotaObject, read_labels, shortest, write_labels
from vantage.data.errors import DataError

CLASSES = ("plane", "ship", "small-vehicle")
DEVKIT = (
    "imagesource:GoogleEarth\n"
    "gsd:0.146343590398\n"
    "2753 2408 2861 2385 2888 2468 2805 2502 plane 0\n"
    "1054 1028 1063 1011 1111 1040 1112 1062 ship 1\n"
)
FILES = {
    "as released": DEVKIT,
    "with decimals": "2753.0 2408.0 2861.0 2385.0 2888.0 2468.0 2805.50 2502.25 plane 0\n",
    "without header and last line break": "1 2 11 2 11 12 1 12 ship 0",
    "with the line breaks of Windows": DEVKIT.replace("\n", "\r\n"),
    "without flags": "1 2 11 2 11 12 1 12 ship\n-1.5e1 2 11 2 11 12 1 12 plane\n",
    "with blank lines and spaces": "gsd:null\n\n1 2  11 2 11 12 1 12\tship 0 \n\n\n1 2 11 2 11 12 1 12 ship 2\n \n",
    "empty": "",
    "a header alone": "imagesource:GoogleEarth\ngsd:None\n",
    "with a byte order mark": "\ufeffimagesource:GoogleEarth\n1 2 11 2 11 12 1 12 ship 0\n",
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_a_file_is_written_back_as_it_was_read(tmp_path, content):
    path, copy = tmp_path / "P0001.txt", tmp_path / "copy.txt"
    path.write_bytes(content.encode())
    labels = read_labels(path, CLASSES)
    assert labels.bad == ()
    write_labels(copy, labels)
    assert copy.read_bytes() == path.read_bytes()


def test_what_a_file_says(tmp_path):
    path = tmp_path / "P0001.txt"
    path.write_text(DEVKIT + "1 2 11 2 11 12 1 12 small-vehicle\n")
    labels = read_labels(path, CLASSES)
    assert labels.header == "imagesource:GoogleEarth\ngsd:0.146343590398\n"
    assert [(each.name, each.difficult) for each in labels.objects] == [("plane", 0), ("ship", 1), ("small-vehicle", 0)]
    assert labels.objects[0].points == (2753, 2408, 2861, 2385, 2888, 2468, 2805, 2502)


def test_a_class_may_be_a_number(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("1 2 11 2 11 12 1 12 7 1\n1 2 11 2 11 12 1 12 8\n")
    assert [(each.name, each.difficult) for each in read_labels(path).objects] == [("7", 1), ("8", 0)]


def test_a_changed_object_is_written_anew(tmp_path):
    path = tmp_path / "a.txt"
    labels = DotaLabels("gsd:1\n", (DotaObject((0.0, -0.0001, 10, 0.5, 10.25, 10.1239, 1e7, 10), "ship", 2),))
    write_labels(path, labels)
    assert path.read_text() == "gsd:1\n0 0 10 0.5 10.25 10.124 10000000 10 ship 2\n"
    assert [shortest(value) for value in (100.0, 0.1 + 0.2, -3.5)] == ["100", "0.3", "-3.5"]


BAD_LINES = {
    "1 2 11 2 11 12 1 ship 0": "has 7 numbers before 'ship', and a quadrilateral needs 8 "
    "(x1 y1 x2 y2 x3 y3 x4 y4 class difficult)",
    "1 2 11": "has 3 numbers, and a quadrilateral needs 8 (x1 y1 x2 y2 x3 y3 x4 y4 class difficult)",
    "1 2 11 2 11 12 1 12": "has no class after its 8 numbers (x1 y1 x2 y2 x3 y3 x4 y4 class difficult)",
    "1 2 11 2 11 12 1 12 small vehicle 0": "has 11 words where at most 10 belong "
    "(x1 y1 x2 y2 x3 y3 x4 y4 class difficult); a class name holds no space",
    "1 2 11 2 11 12 1 12 shp 0": "has the unknown class 'shp'; did you mean 'ship'?",
    "1 2 11 2 11 12 1 12 harbor 0": "has the unknown class 'harbor'; classes: plane, ship, small-vehicle",
    "1 2 11 2 nan 12 1 12 ship 0": "has the coordinate nan, which is not a finite number",
    "1 2 11 2 11 -Infinity 1 12 ship 0": "has the coordinate -Infinity, which is not a finite number",
    "1 2 11 2 11 12 1 12 ship 3": "has the flag '3' after the class, and difficult is 0, 1 or 2 "
    "(x1 y1 x2 y2 x3 y3 x4 y4 class difficult)",
    "5 5 5 5 5 5 5 5 ship 0": "has a polygon without area (5 5 5 5 5 5 5 5)",
    "0 0 5 5 10 10 2 2 ship 0": "has a polygon without area (0 0 5 5 10 10 2 2)",
    "0 0 10 10 10 0 0 10 ship 0": "has a polygon that crosses itself (0 0 10 10 10 0 0 10); give the corners in order "
    "around the object",
}


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.items(), ids=BAD_LINES)
def test_a_bad_line_is_named_with_its_file_and_reason(tmp_path, line, reason):
    path = tmp_path / "P0001.txt"
    path.write_text(DEVKIT + line + "\n" + "1 2 11 2 11 12 1 12 ship 0\n")
    labels = read_labels(path, CLASSES)
    assert labels.bad == (f"{path}, line 5: {reason}",)
    assert len(labels.objects) == 3


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "P0001.txt"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    with pytest.raises(DataError, match=r"P0001.txt: is not a text file"):
        read_labels(path)
    with pytest.raises(DataError, match=r"missing.txt: cannot be read \(No such file or directory\)"):
        read_labels(tmp_path / "missing.txt")
