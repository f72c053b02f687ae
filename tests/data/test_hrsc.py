import logging

import pytest
import torch

from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.hrsc import FINE_CLASSES, Hrsc2016, read_xml
from vantage.data.rotated_augment import RotatedAugment
from vantage.ops.rotated_boxes import to_corners

from .rotated_files import XML, write_hrsc

EMPTY = "<HRSC_Image>\n  <HRSC_Objects>\n  </HRSC_Objects>\n</HRSC_Image>\n"


def make(root, **options):
    options = {"image_size": 64, "num_workers": 0, "augment": RotatedAugment()} | options
    data = Hrsc2016(root=str(root), **options)
    data.setup()
    return data


@pytest.fixture
def root(tmp_path):
    train = {"100000001": XML, "100000002": EMPTY, "100000003": XML, "100000004": XML}
    return write_hrsc(tmp_path, {"train": train, "val": {"100000005": XML}, "test": {"100000006": XML}})


def test_a_file_as_released(tmp_path):
    path = tmp_path / "100000001.xml"
    path.write_text(XML)
    objects, bad = read_xml(path)
    assert bad == []
    assert torch.allclose(objects.boxes, torch.tensor([[582.9349, 353.2006, 778.1303, 174.2541, -0.2144308]]))
    assert objects.labels.tolist() == [0]
    assert objects.difficult.tolist() == [False]
    # the bow, header_x and header_y, lies on the box's axis: the angle is clockwise, for y points down
    corners = to_corners(objects.boxes)[0]
    bow = (corners[1] + corners[2]) / 2
    assert (bow - torch.tensor([964.0, 290.0])).norm() < 0.05 * 778
    left, right = corners[:, 0].aminmax()
    assert left == pytest.approx(194, abs=12)  # box_xmin
    assert right == pytest.approx(972, abs=12)  # box_xmax


def test_fine_classes(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(XML)
    labels = read_xml(path, fine_classes=True)[0].labels
    assert list(FINE_CLASSES.values())[labels[0]] == "Kuznetsov"
    assert len(FINE_CLASSES) == 31


def test_the_data_module(root, caplog):
    with caplog.at_level(logging.INFO):
        data = make(root)
    assert data.info.class_names == ["ship"]
    assert "train: 4 pictures, 3 objects (0 difficult), 1 pictures without any object" in caplog.text
    (batch,) = list(data.test_dataloader())
    assert batch[0]["name"] == "100000006"
    assert batch[0]["image"].shape == (3, 75, 116)
    assert make(root, fine_classes=True).info.num_classes == 31


def change(old, new):
    assert old in XML
    return XML.replace(old, new)


BAD = {
    "no mbox": (
        change("      <mbox_w>778.1303</mbox_w>\n", ""),
        ", line 10: HRSC_Object has no mbox_w; a box is mbox_cx, mbox_cy, mbox_w, mbox_h, mbox_ang",
    ),
    "no text": (change("778.1303", ""), ", line 10: HRSC_Object has no mbox_w"),
    "no number": (change("778.1303", "wide"), ", line 10: mbox_w is 'wide', which is not a finite number"),
    "nan": (change("-0.2144308", "nan"), ", line 10: mbox_ang is 'nan', which is not a finite number"),
    "no area": (change("174.2541", "0"), ", line 10: mbox_h is 0, so that the box has no area"),
    "no objects": ("<HRSC_Image>\n</HRSC_Image>\n", ", line 1: has no element HRSC_Objects; an empty one says"),
    "no XML": (XML[:700], ", line "),
    "another class": (
        change("100000013", "100000021"),
        ", line 10: Class_ID is '100000021', and known are 100000001 to 100000033 without 21 and 23",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_refused_with_line_and_reason_or_skipped(root, what, caplog):
    content, reason = BAD[what]
    path = root / "FullDataSet/Annotations/100000001.xml"
    path.write_text(content)
    options = {"fine_classes": what == "another class"}
    with pytest.raises(DataError) as caught:
        make(root, **options)
    assert str(caught.value).startswith(f"{path}{reason}")
    data = make(root, on_bad_sample="skip", **options)
    assert f"skipped {path}{reason}" in caplog.text
    assert "1 files and objects are bad and were skipped" in caplog.text
    assert len(data.datasets["train"]) == (3 if what in ("no objects", "no XML") else 4)


def test_missing_files(root, tmp_path):
    (root / "FullDataSet/AllImages/100000003.bmp").unlink()
    with pytest.raises(DataError, match=r"train.txt, line 3: 100000003 has no file .*100000003.bmp"):
        make(root)
    with pytest.raises(DataNotFoundError, match=r"HRSC2016 is expected as FullDataSet/AllImages/\*.bmp"):
        make(tmp_path / "nowhere")
