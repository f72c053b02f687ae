"""Masks made visible: which pixel gets which colour, at every size."""

import numpy as np
import pytest
import torch

from vantage.data.info import DataInfo
from vantage.tasks.segmentation.paint import (
    NOT_SCORED,
    STRIPE_COLOUR,
    WRONG_COLOUR,
    outlines,
    paint_errors,
    paint_labels,
    paint_overlay,
    resize_mask,
    resize_picture,
    shown_size,
    to_picture,
)
from vantage.tasks.segmentation.palette import IGNORE_COLOUR, palette


def colours(pixels):
    return {tuple(colour) for colour in pixels.reshape(-1, 3).tolist()}


@pytest.mark.parametrize("in_chans", [1, 2, 3, 5])
def test_pictures_are_denormalised(in_chans):
    info = DataInfo(2, ["a", "b"], in_chans, (4, 6), [0.25] * in_chans, [0.5] * in_chans)
    pixels = torch.randint(256, (in_chans, 4, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = to_picture(info.normalize(pixels), info)
    expected = pixels[:3] if in_chans >= 3 else pixels[:1].expand(3, -1, -1)
    np.testing.assert_array_equal(picture, expected.permute(1, 2, 0))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1024, 2048), (256, 512)),
        ((400, 300), (400, 300)),
        ((28, 28), (280, 280)),
        ((100, 255), (200, 510)),
        ((5000, 2), (512, 1)),
    ],
)
def test_large_pictures_are_reduced_and_tiny_ones_multiplied(size, expected):
    assert shown_size(*size, least=256, most=512) == expected


def test_a_resized_mask_has_no_new_labels_and_multiplied_pixels_stay_squares():
    mask = np.array([[0, 9], [255, 3]], np.uint8)
    assert resize_mask(mask, (4, 6)).tolist() == [[0, 0, 0, 9, 9, 9]] * 2 + [[255, 255, 255, 3, 3, 3]] * 2
    large = np.random.default_rng(0).choice([0, 9, 255], (301, 203)).astype(np.uint8)
    reduced = resize_mask(large, (30, 20))
    assert reduced.shape == (30, 20)
    assert set(np.unique(reduced)) == {0, 9, 255}
    picture = np.random.default_rng(1).integers(0, 256, (3, 5, 3), np.uint8)
    np.testing.assert_array_equal(resize_picture(picture, (6, 20)), picture.repeat(2, 0).repeat(4, 1))
    assert resize_picture(np.full((90, 70, 3), 77, np.uint8), (30, 23)).tolist() == [[[77] * 3] * 23] * 30


def test_outlines_lie_between_classes_and_not_around_what_is_ignored():
    mask = np.array([[0, 0, 1, 255], [0, 0, 1, 255], [2, 2, 2, 2]], np.uint8)
    assert outlines(mask).astype(int).tolist() == [[0, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


def test_ignored_labels_are_hatched():
    mask = np.full((20, 20), 255, np.uint8)
    mask[:, :8] = 3
    painted = paint_labels(mask, palette(4))
    assert colours(painted[:, :8]) == {(128, 128, 0)}
    assert colours(painted[:, 8:]) == {IGNORE_COLOUR, STRIPE_COLOUR}


def test_an_overlay_tints_classes_leaves_black_and_hatches_what_is_ignored():
    picture = np.full((20, 30, 3), 100, np.uint8)
    mask = np.zeros((20, 30), np.uint8)
    mask[:, 10:20], mask[:, 20:] = 1, 255
    painted = paint_overlay(picture, mask, palette(2))
    assert colours(painted[:, :9]) == {(100, 100, 100)}
    assert colours(painted[:, 9]) == {(255, 255, 255)}
    assert colours(painted[:, 10:20]) == {(114, 50, 50)}
    assert colours(painted[:, 20:]) == {(100, 100, 100), IGNORE_COLOUR}
    assert colours(paint_overlay(picture, mask, palette(2), alpha=1.0)[:, 10:20]) == {(128, 0, 0)}
    assert colours(picture) == {(100, 100, 100)}  # the original is not painted over


def test_errors_are_red_hits_dim_grey_and_ignored_pixels_hatched_whatever_was_predicted():
    picture = np.zeros((12, 30, 3), np.uint8)
    picture[...] = (0, 200, 0)
    truth = np.zeros((12, 30), np.uint8)
    truth[:, 10:20], truth[:, 20:] = 1, 255
    prediction = np.zeros((12, 30), np.uint8)
    prediction[:, 12:20] = 1
    painted = paint_errors(picture, truth, prediction)
    (grey,) = colours(painted[:, :10])
    assert grey == colours(painted[:, 12:20]).pop()
    assert len(set(grey)) == 1
    assert grey[0] < 128
    assert colours(painted[:, 10:12]) == {WRONG_COLOUR}
    assert colours(painted[:, 20:]) == set(NOT_SCORED)
    brighter = paint_errors(np.full_like(picture, 255), truth, prediction)
    assert brighter[0, 0, 0] > grey[0]  # the picture shows through
