"""Colours of classes: those of PASCAL VOC, all different, and PNG files that hold indices."""

import numpy as np
import pytest
from PIL import Image

from vantage.data.info import DataInfo
from vantage.data.masks import Indices
from vantage.tasks.segmentation.palette import IGNORE_COLOUR, colourise, palette, palette_of, write_indexed_png

# as printed with the devkit's class list: background, aeroplane ... tvmonitor
VOC = [
    *([0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128]),
    *([128, 128, 128], [64, 0, 0], [192, 0, 0], [64, 128, 0], [192, 128, 0], [64, 0, 128], [192, 0, 128]),
    *([64, 128, 128], [192, 128, 128], [0, 64, 0], [128, 64, 0], [0, 192, 0], [128, 192, 0], [0, 64, 128]),
]


def test_the_colours_are_those_of_pascal_voc():
    assert palette(21) == VOC


def test_255_classes_and_what_is_ignored_have_different_colours():
    colours = {tuple(colour) for colour in palette(255)}
    assert len(colours) == 255
    assert IGNORE_COLOUR not in colours


def test_a_mask_has_no_room_for_more_classes():
    with pytest.raises(ValueError, match="num_classes is 256, but a uint8 mask holds 255 classes beside 255"):
        palette(256)


def test_the_data_may_have_colours_of_its_own():
    info = DataInfo(2, ["road", "sky"], 3, (8, 8), [0.5] * 3, [0.25] * 3)
    assert palette_of(info) == VOC[:2]
    own = DataInfo(2, ["road", "sky"], 3, (8, 8), [0.5] * 3, [0.25] * 3, palette=[[128, 64, 128], [70, 130, 180]])
    assert palette_of(own) == [[128, 64, 128], [70, 130, 180]]


def test_every_pixel_gets_its_class_colour():
    mask = np.array([[0, 1, 2], [255, 20, 7]], np.uint8)
    coloured = colourise(mask, palette(21))
    assert coloured.dtype == np.uint8
    assert coloured.tolist() == [[VOC[0], VOC[1], VOC[2]], [list(IGNORE_COLOUR), VOC[20], VOC[7]]]


@pytest.mark.parametrize(("num_classes", "shape"), [(2, (5, 7)), (21, (1, 1)), (255, (16, 33))])
def test_a_png_holds_the_indices_and_the_colours(tmp_path, num_classes, shape):
    mask = np.random.default_rng(0).integers(0, num_classes, shape).astype(np.uint8)
    mask[0, 0] = 255
    path = write_indexed_png(tmp_path / "masks" / "a.png", mask, palette(num_classes))
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), mask)
        stored = np.array(image.getpalette()).reshape(256, 3)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), colourise(mask, palette(num_classes)))
    assert stored[:num_classes].tolist() == palette(num_classes)
    assert tuple(stored[255]) == IGNORE_COLOUR
    # and it is an annotation that the data can be trained on
    np.testing.assert_array_equal(Indices.plain(num_classes).read(path), mask)
