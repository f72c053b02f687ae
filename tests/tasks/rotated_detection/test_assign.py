"""Assignment by overlap against torchvision's matcher, and what difficult boxes do to it."""

from functools import partial

import pytest
import torch
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from vantage.tasks.rotated_detection import assign as module
from vantage.tasks.rotated_detection.assign import (
    BACKGROUND,
    IGNORED,
    assign_by_overlap,
    draw_sample,
    upright_overlap,
)


def upright(count, seed, size=100.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size
    return torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 40], 1)


def assigned(anchors, boxes, difficult=None, low_quality=True):
    difficult = torch.zeros(len(boxes), dtype=torch.bool) if difficult is None else difficult
    return assign_by_overlap(
        anchors, boxes, difficult, overlap=upright_overlap, covered=partial(upright_overlap, share_of_first=True),
        positive=0.5, negative=0.4, low_quality=low_quality,
    )  # fmt: skip


@pytest.mark.parametrize("pairs", [2**24, 3000], ids=["at_once", "in_parts"])
@pytest.mark.parametrize("low_quality", [True, False])
def test_assignment_is_torchvisions(pairs, low_quality, monkeypatch):
    monkeypatch.setattr(module, "PAIRS", pairs)
    anchors, boxes = upright(800, 0), upright(20, 1)
    found = assigned(anchors, boxes, low_quality=low_quality)
    expected = Matcher(0.5, 0.4, allow_low_quality_matches=low_quality)(box_iou(boxes, anchors))
    best_of_box = box_iou(boxes, anchors) == box_iou(boxes, anchors).amax(1, keepdim=True)
    # an anchor that is the best of a box goes to that box here (as in mmdetection), to its own best in torchvision
    same = ~best_of_box.any(0) if low_quality else torch.ones(len(anchors), dtype=torch.bool)
    assert torch.equal(found[same], expected[same])
    assert (found[~same] >= 0).all()
    assert (found >= 0).sum() > 10
    assert (found == IGNORED).sum() > 10


def test_upright_overlap_is_torchvisions_iou():
    anchors, boxes = upright(100, 0), upright(50, 1)
    torch.testing.assert_close(upright_overlap(anchors, boxes), box_iou(anchors, boxes))
    share = upright_overlap(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[5.0, 0, 100, 100]]), share_of_first=True)
    assert share.item() == 0.5


def test_every_box_gets_an_anchor_however_bad():
    anchors = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    boxes = torch.tensor([[0.0, 0, 100, 100], [51, 51, 52, 52]])
    assert assigned(anchors, boxes).tolist() == [0, 1]
    assert assigned(anchors, boxes, low_quality=False).tolist() == [BACKGROUND, BACKGROUND]


def test_difficult_boxes_get_none_and_are_no_background():
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 24, 24], [80, 80, 90, 90], [0, 0, 11, 10]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [15, 15, 60, 60], [0, 0, 10, 10.5]])
    difficult = torch.tensor([False, True, True])
    assert assigned(anchors, boxes, difficult).tolist() == [0, IGNORED, BACKGROUND, 0]
    assert assigned(anchors, boxes, torch.ones(3, dtype=torch.bool)).tolist() == [IGNORED, IGNORED, BACKGROUND, IGNORED]


def test_a_sample_has_its_share_of_positives():
    labels = torch.tensor([0] * 30 + [BACKGROUND] * 500 + [IGNORED] * 20)
    positives, background = draw_sample(labels, 64, 0.25)
    assert len(positives) == 16
    assert len(background) == 48
    assert len(set(background.tolist())) == 48
    assert (labels[positives] == 0).all()
    assert (labels[background] == BACKGROUND).all()
    positives, background = draw_sample(labels[20:], 64, 0.5)
    assert (len(positives), len(background)) == (10, 54)
