"""Non-maximum suppression: published values, torchvision for upright boxes, both backends alike."""

import pytest
import torch
from torchvision.ops import batched_nms, box_convert, nms

from vantage.ops.rotated_boxes import reference, rotated_iou, rotated_nms

from .cases import both_backends, boxes_like, random_boxes

BOXES = boxes_like([[6, 3, 8, 7, 0.5], [3, 6, 9, 11, 0.6], [3, 7, 10, 12, 0.3], [1, 4, 13, 7, 0.6]])
SCORES = torch.tensor([0.7, 0.8, 0.5, 0.9])


def scene(count: int, dtype=torch.float32):
    """Three boxes per object."""
    objects = random_boxes(-(-count // 3), dtype, spread=600)
    boxes = objects.repeat_interleave(3, 0)[:count]
    scale = torch.tensor([2, 2, 2, 2, 0.1], dtype=dtype)
    return boxes + torch.randn_like(boxes) * scale, torch.rand(count, dtype=dtype), torch.randint(5, (count,))


@both_backends
def test_published_values(backend):
    assert rotated_nms(BOXES, SCORES, 0.5, backend=backend).tolist() == [3, 1, 0]
    labels = torch.tensor([1, 0, 1, 0])
    assert rotated_nms(BOXES, SCORES, 0.5, labels=labels, backend=backend).tolist() == [3, 1, 0, 2]


@both_backends
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 0.9])
def test_upright_boxes_as_torchvision(backend, threshold):
    boxes, scores, labels = scene(900)
    boxes[:, 4] = 0
    corners = box_convert(boxes[:, :4], "cxcywh", "xyxy")
    assert torch.equal(rotated_nms(boxes, scores, threshold, backend=backend), nms(corners, scores, threshold))
    wanted = batched_nms(corners.double(), scores.double(), labels, threshold)
    assert torch.equal(rotated_nms(boxes, scores, threshold, labels=labels, backend=backend), wanted)


@both_backends
@pytest.mark.parametrize("with_labels", [False, True])
def test_is_the_greedy_loop(backend, with_labels, monkeypatch):
    monkeypatch.setattr(reference, "NMS_BLOCK", 50)
    boxes, scores, labels = scene(400, torch.float64)
    kept = rotated_nms(boxes, scores, 0.3, labels=labels if with_labels else None, backend=backend)
    iou = rotated_iou(boxes, boxes, backend="reference")
    wanted = []
    for i in scores.argsort(descending=True).tolist():
        if not any(iou[i, j] > 0.3 and (not with_labels or labels[i] == labels[j]) for j in wanted):
            wanted.append(i)
    assert kept.tolist() == wanted
    assert 100 < len(wanted) < 390


@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_both_backends_keep_the_same(backend):
    boxes, scores, labels = scene(3000)
    boxes[0, 2:4] = 2000.0  # one that is near all
    wanted = rotated_nms(boxes, scores, 0.1, labels=labels, backend="reference")
    assert torch.equal(rotated_nms(boxes, scores, 0.1, labels=labels, backend=backend), wanted)


@both_backends
def test_classes_need_no_offset(backend):
    """At coordinates of 1e6 an offset per class would cost a pixel of precision."""
    boxes, scores, labels = scene(300, torch.float64)
    far = boxes + torch.tensor([1e6, 1e6, 0, 0, 0], dtype=torch.float64)
    assert torch.equal(*(rotated_nms(b, scores, 0.3, labels=labels * 1000, backend=backend) for b in (boxes, far)))


@both_backends
def test_the_threshold_itself_is_kept(backend):
    boxes = boxes_like([[0, 0, 4, 2, 0], [0, 0, 2, 2, 0]])
    assert rotated_nms(boxes, torch.tensor([0.9, 0.8]), 0.5, backend=backend).tolist() == [0, 1]
    assert rotated_nms(boxes, torch.tensor([0.9, 0.8]), 0.499, backend=backend).tolist() == [0]


@both_backends
def test_equal_scores_by_index_and_identical_boxes(backend):
    boxes = boxes_like([[5, 5, 8, 3, 0.3]] * 40)
    assert rotated_nms(boxes, torch.ones(40), 0.5, backend=backend).tolist() == [0]
    assert rotated_nms(boxes, torch.ones(40), 1.0, backend=backend).tolist() == list(range(40))
    labels = torch.arange(40) % 4
    assert rotated_nms(boxes, torch.ones(40), 0.5, labels=labels, backend=backend).tolist() == [0, 1, 2, 3]


@both_backends
def test_boxes_that_are_not_finite_or_empty(backend):
    odd = boxes_like([[float("nan"), 4, 13, 7, 0.6], [1, 4, float("inf"), 7, 0.6], [1, 4, 0, 0, 0]])
    boxes = torch.cat((BOXES, odd))
    scores = torch.cat((SCORES, torch.tensor([0.99, 0.98, 0.97])))
    assert rotated_nms(boxes, scores, 0.5, backend=backend).tolist() == [4, 5, 6, 3, 1, 0]
    assert rotated_nms(torch.empty(0, 5), torch.empty(0), 0.5, backend=backend).tolist() == []
    assert rotated_nms(BOXES.requires_grad_(), SCORES, 0.5, backend=backend).requires_grad is False
    BOXES.requires_grad_(False)


@both_backends
def test_scores_of_any_dtype_and_labels_of_any_integer(backend):
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert rotated_nms(BOXES, SCORES.to(dtype), 0.5, backend=backend).tolist() == [3, 1, 0]
    labels = torch.tensor([1, 0, 1, 0], dtype=torch.uint8)
    assert rotated_nms(BOXES.flip(0).flip(0), SCORES, 0.5, labels=labels, backend=backend).tolist() == [3, 1, 0, 2]


def test_refusals():
    def refused(message, boxes=BOXES, scores=SCORES, threshold=0.5, **options):
        with pytest.raises(ValueError, match=message):
            rotated_nms(boxes, scores, threshold, **options)

    refused(r"rotated_nms: boxes has 4 boxes and scores 3", scores=SCORES[:3])
    refused(r"rotated_nms: scores have shape \(4, 1\); use \(4,\), one per box", scores=SCORES[:, None])
    refused(r"rotated_nms: labels are torch.float32; use integers", labels=SCORES)
    refused(r"rotated_nms: iou_threshold=50 is no IoU; use a value between 0 and 1", threshold=50)
    refused(r"rotated_nms: 1 of 4 scores are NaN", scores=torch.tensor([0.1, float("nan"), 0.2, 0.3]))
    refused(r"rotated_nms: boxes has shape \(4, 4\)", boxes=BOXES[:, :4])
    refused(r"rotated_nms: boxes is torch.float16, which rounds pixels", boxes=BOXES.half())
