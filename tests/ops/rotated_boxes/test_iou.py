"""Overlap of rotated boxes: published values, shapely, and the cases where other implementations are wrong."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from vantage.ops.rotated_boxes import reference, rotated_iou

from .cases import both_backends, boxes_like, degrees, random_boxes, shapely_areas, shapely_iou

A = boxes_like([[1, 1, 3, 4, 0.5], [2, 2, 3, 4, 0.6], [7, 7, 8, 8, 0.4]])
B = boxes_like([[0, 2, 2, 5, 0.3], [2, 1, 3, 3, 0.5], [5, 5, 6, 7, 0.4]])

HALF_TURN = torch.tensor([0, 0, 0, 0, math.pi], dtype=torch.float64)

PUBLISHED = {  # degrees counter-clockwise; issues of detectron2 and mmcv, and their tests
    "crossed": ((5, 5, 10, 6, 55), (5, 5, 10, 6, -35), 3 / 7),
    "detectron2 #1207": ((160, 153, 230, 23, -37), (190, 127, 80, 21, -46), 0),
    "nested": ((565, 565, 10, 10, 0), (565, 565, 10, 8.3, 0), 0.83),
    "inscribed": ((1, 1, 2**0.5, 2**0.5, 45), (1, 1, 2, 2, 0), 0.5),
    "detectron2 #4961": (
        (1010.5, 860.00012207, 12.20655537, 48.82622528, 55.00798035),
        (1022, 870.49993896, 10.81665134, 43.26660919, 56.30992889),
        0.3688,
    ),
    "detectron2 #2154": (
        (296.6620178222656, 458.73883056640625, 23.515729904174805, 47.677001953125, 0.08795166015625),
        (296.66201, 458.73882000000003, 23.51573, 47.67702, 0.087951),
        1,
    ),
    "detectron2 #2167": (
        (2563.744629, 1436.790161, 2174.703369, 214.095001, 115.118347),
        (2563.744629, 1436.790283, 2174.702881, 214.094955, 115.118355),
        1,
    ),
    "repair": ((42, 332, 24, 82, -89), (42, 332, 24, 82.0001, -89), 0.999999),
}


@both_backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", PUBLISHED)
def test_published_values(backend, case, dtype):
    first, second, wanted = PUBLISHED[case]
    for a, b in ((first, second), (second, first)):
        iou = rotated_iou(degrees(*a, dtype=dtype), degrees(*b, dtype=dtype), backend=backend)
        assert iou.shape == (1, 1)
        assert iou.dtype == dtype
        assert iou.item() == pytest.approx(wanted, abs=5e-5)
    if wanted == 0:
        assert iou.item() == 0


@both_backends
def test_published_table(backend):
    wanted = torch.tensor([[0.3708, 0.4351, 0], [0.1104, 0.4487, 0.0424], [0, 0, 0.3622]])
    torch.testing.assert_close(rotated_iou(A, B, backend=backend), wanted, atol=6e-5, rtol=0)
    torch.testing.assert_close(rotated_iou(A, B, aligned=True, backend=backend), wanted.diag(), atol=6e-5, rtol=0)
    iof = rotated_iou(A, B, mode="iof", backend=backend).diag()
    torch.testing.assert_close(iof, torch.tensor([0.4959, 0.5420, 0.4404]), atol=6e-5, rtol=0)
    torch.testing.assert_close(rotated_iou(A, B, aligned=True, mode="iof", backend=backend), iof)


def hard_pairs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A quarter each of any boxes, slivers, nearly identical boxes, and boxes far from the origin."""
    a = random_boxes(count)
    shift = torch.randn(count, 2) * a[:, 2:4] / 3
    b = torch.cat((a[:, :2] + shift, random_boxes(count)[:, 2:]), 1)
    quarter = count // 4
    a[:quarter, 3] = 10 ** (-3 + 3 * torch.rand(quarter))
    b[: quarter // 2, 3] = 10 ** (-3 + 3 * torch.rand(quarter // 2))
    jitter = 10 ** torch.empty(quarter, 1).uniform_(-6, -1)
    b[quarter : 2 * quarter] = a[quarter : 2 * quarter] + jitter * torch.randn(quarter, 5)
    for boxes in (a, b):
        boxes[2 * quarter : 3 * quarter, :2] += 1e6
    return a, b


@both_backends
def test_20000_random_pairs_against_shapely(backend, record_property):
    a, b = hard_pairs(20000)
    errors = (rotated_iou(a, b, aligned=True, backend=backend).double() - shapely_iou(a, b)).abs()
    print(f"{backend}: largest error of 20,000 pairs in float32: {errors.max():.2g}")
    record_property("largest_error", errors.max().item())
    assert errors.max() < 1e-6  # 1e-4 was asked for; float32 rounds 1 to 6e-8


@both_backends
def test_iof_against_shapely(backend):
    a, b = hard_pairs(2000)
    common, area_a, _ = shapely_areas(a, b)
    iof = rotated_iou(a, b, aligned=True, mode="iof", backend=backend).double()
    assert (iof - common / area_a).abs().max() < 1e-6


@both_backends
@pytest.mark.parametrize("jitter", [0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_jittered_identical_boxes(backend, jitter, dtype):
    a = random_boxes(2000, dtype)
    b = a + jitter * torch.randn_like(a)
    iou = rotated_iou(a, b, aligned=True, backend=backend)
    assert (iou.double() - shapely_iou(a, b)).abs().max() < 1e-6
    assert iou.max() <= 1
    if jitter == 0:
        assert iou.min() >= 1 - 1e-6


@both_backends
def test_pairwise_is_aligned_for_every_pair(backend, monkeypatch):
    monkeypatch.setattr(reference, "CHUNK_DISTANCES", 100)
    monkeypatch.setattr(reference, "CHUNK_PAIRS", 7)
    a, b = random_boxes(23), random_boxes(37)
    for mode in ("iou", "iof"):
        table = rotated_iou(a, b, mode=mode, backend=backend)
        i, j = (index.flatten() for index in torch.meshgrid(torch.arange(23), torch.arange(37), indexing="ij"))
        wanted = rotated_iou(a[i], b[j], aligned=True, mode=mode, backend=backend)
        torch.testing.assert_close(table.flatten(), wanted, atol=1e-7, rtol=1e-6)
    assert (table == 0).any()


@both_backends
@pytest.mark.parametrize("at", [0.0, 1e6])
def test_touching_nested_and_crossing(backend, at):
    def iou(a, b, **options):
        a, b = boxes_like(a, torch.float64), boxes_like(b, torch.float64)
        a[:, :2] += at
        b[:, :2] += at
        return rotated_iou(a, b, backend=backend, **options).item()

    square = [0, 0, 10, 10, 0]
    assert iou(square, [10, 0, 10, 10, 0]) == 0  # an edge in common
    assert iou(square, [10, 10, 10, 10, 0]) == 0  # a corner
    assert iou(square, [5 + 2**0.5 / 2, 0, 1, 1, math.pi / 4]) == pytest.approx(0, abs=1e-12)
    assert iou(square, [0, 0, 5, 5, 1.0]) == pytest.approx(0.25, abs=1e-12)
    assert iou([0, 0, 5, 5, 1.0], square) == pytest.approx(0.25, abs=1e-12)
    assert iou([0, 0, 5, 5, 1.0], square, mode="iof") == pytest.approx(1, abs=1e-12)
    assert iou(square, [0, 0, 10, 5, 0]) == pytest.approx(0.5, abs=1e-12)  # edges in common, nested
    assert iou([0, 0, 10, 1e-3, 0.3], [0, 0, 10, 1e-3, 0.3 + math.pi / 2]) == pytest.approx(1e-6 / (2e-2 - 1e-6))
    assert iou([0, 0, 1e4, 1e-2, 0.7], [0, 0, 1e4, 2e-2, 0.7]) == pytest.approx(0.5, abs=1e-9)


@both_backends
def test_the_same_rectangle_in_other_words(backend):
    a = random_boxes(300, torch.float64)
    swapped = a[:, [0, 1, 3, 2, 4]] + HALF_TURN / 2
    for b in (swapped, a + HALF_TURN, a - 6 * HALF_TURN):
        assert (rotated_iou(a, b, aligned=True, backend=backend) - 1).abs().max() < 1e-12


@both_backends
def test_boxes_without_area(backend):
    empty = boxes_like([[5, 5, 0, 0, 0], [5, 5, 4, 0, 1], [5, 5, 0, 3, 0.2], [5, 5, -4, 3, 0.2], [5, 5, -4, -3, 0]])
    full = boxes_like([[5, 5, 4, 3, 0.2]])
    for a, b in ((empty, full), (full, empty), (empty, empty)):
        for mode in ("iou", "iof"):
            assert not rotated_iou(a, b, mode=mode, backend=backend).any()


@both_backends
@pytest.mark.parametrize("mode", ["iou", "iof"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", range(5))
def test_a_box_that_is_not_finite_gives_nan(backend, column, value, mode):
    boxes = random_boxes(4)
    boxes[2, column] = value
    others = random_boxes(3)
    for table in (rotated_iou(boxes, others, mode=mode, backend=backend), rotated_iou(others, boxes, mode=mode).T):
        assert table[2].isnan().all()
        assert not table[[0, 1, 3]].isnan().any()
    assert rotated_iou(boxes[:3], others, aligned=True, mode=mode, backend=backend).isnan().tolist() == [0, 0, 1]


@both_backends
def test_empty_inputs(backend):
    none, some = torch.empty(0, 5), random_boxes(3)
    assert rotated_iou(none, some, backend=backend).shape == (0, 3)
    assert rotated_iou(some, none, backend=backend).shape == (3, 0)
    assert rotated_iou(none, none, backend=backend).shape == (0, 0)
    assert rotated_iou(none, none, aligned=True, backend=backend).shape == (0,)
    leaf = torch.empty(0, 5, requires_grad=True)
    for iou in (rotated_iou(leaf, leaf, aligned=True, backend=backend), rotated_iou(leaf, some, backend=backend)):
        iou.sum().backward()
    assert leaf.grad.shape == (0, 5)


@both_backends
def test_any_strides(backend):
    a, b = random_boxes(30), random_boxes(30)
    for change in (lambda t: t.repeat(1, 2)[:, :5], lambda t: t.T.contiguous().T, lambda t: t.repeat(2, 1)[::2]):
        for aligned in (False, True):
            wanted = rotated_iou(change(a).contiguous(), change(b).contiguous(), aligned=aligned, backend=backend)
            assert torch.equal(rotated_iou(change(a), change(b), aligned=aligned, backend=backend), wanted)
    row = a[:1].expand(30, 5)
    torch.testing.assert_close(
        rotated_iou(row, b, aligned=True, backend=backend), rotated_iou(a[:1], b, backend=backend)[0]
    )


@both_backends
def test_autocast_changes_nothing(backend):
    a, b = random_boxes(20), random_boxes(20)
    for aligned in (False, True):
        wanted = rotated_iou(a, b, aligned=aligned, backend=backend)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(rotated_iou(a, b, aligned=aligned, backend=backend), wanted)


# gradients


def overlapping_pairs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    a = random_boxes(count, torch.float64)
    b = torch.cat((a[:, :2] + torch.randn(count, 2) * a[:, 2:4] / 4, random_boxes(count, torch.float64)[:, 2:]), 1)
    return a.requires_grad_(), b.requires_grad_()


@both_backends
@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_gradcheck(backend, mode):
    a, b = overlapping_pairs(20)
    assert gradcheck(lambda a, b: rotated_iou(a, b, aligned=True, mode=mode, backend=backend), (a, b))
    assert gradcheck(lambda a, b: rotated_iou(a, b, mode=mode, backend=backend), (a[:4], b[:5]))


def test_second_derivatives():
    a, b = overlapping_pairs(4)
    assert gradgradcheck(lambda a, b: rotated_iou(a, b, aligned=True, backend="reference"), (a, b))


@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_native_is_differentiable_once(backend):
    a, b = overlapping_pairs(2)
    iou = rotated_iou(a, b, aligned=True, backend=backend).sum()
    (grad,) = torch.autograd.grad(iou, a, create_graph=True)
    with pytest.raises(RuntimeError, match="backends native and cuda are differentiable once; use backend='reference'"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", ["native"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_gradients_of_both_backends_agree(backend, dtype, mode):
    made = overlapping_pairs(300)
    for aligned in (True, False):
        results = []
        for name in (backend, "reference"):
            a, b = (t.detach().to(dtype).requires_grad_() for t in made)
            iou = rotated_iou(a, b, aligned=aligned, mode=mode, backend=name)
            weight = torch.linspace(-1, 2, iou.numel(), dtype=dtype).view(iou.shape)
            results.append(torch.autograd.grad((iou * weight).sum(), (a, b)))
        for native, wanted in zip(*results):
            torch.testing.assert_close(native, wanted, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-9)


@both_backends
def test_identical_boxes_are_a_maximum(backend):
    a = random_boxes(200)
    b = a.clone().requires_grad_()
    (grad,) = torch.autograd.grad(rotated_iou(a, b, aligned=True, backend=backend).sum(), b)
    assert grad.abs().max() < 1e-6


@both_backends
def test_gradient_of_upright_boxes_is_torchvisions(backend):
    from torchvision.ops import box_convert, box_iou

    a, b = random_boxes(8, torch.float64, 10.0), random_boxes(8, torch.float64, 10.0)
    a[:, 4] = b[:, 4] = 0
    a.requires_grad_()
    (grad,) = torch.autograd.grad(rotated_iou(a, b, backend=backend).sum(), a)
    upright = (box_convert(boxes[:, :4], "cxcywh", "xyxy") for boxes in (a, b))
    (wanted,) = torch.autograd.grad(box_iou(*upright).sum(), a)
    torch.testing.assert_close(grad[:, :4], wanted[:, :4])


@both_backends
@pytest.mark.parametrize("mode", ["iou", "iof"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_are_finite_everywhere(backend, mode, dtype):
    sides = [0.0, 1e-30, 1e-8, 1e-3, 1.0, 40.0, 1e5]
    angles = [0.0, 1e-7, math.pi / 4, math.pi / 2, -math.pi / 2]
    centres = [0.0, 0.5, 20.0, 40.0]
    rows = [[x, 0, w, h, angle] for x in centres for w in sides for h in sides for angle in angles]
    boxes = boxes_like(rows, dtype)
    targets = boxes_like([[0, 0, 40, 40, 0], [0, 0, 40, 1e-3, 0], [0, 0, 0, 0, 0], [0, 0, 1, 1, 0.1]], dtype)
    a = boxes.repeat_interleave(len(targets), 0).requires_grad_()
    b = targets.repeat(len(boxes), 1).requires_grad_()
    iou = rotated_iou(a, b, aligned=True, mode=mode, backend=backend)
    assert iou.isfinite().all()
    assert ((iou >= 0) & (iou <= 1)).all()
    for grad in torch.autograd.grad(iou.sum(), (a, b)):
        assert grad.isfinite().all()


@both_backends
def test_refusals(backend):
    a = random_boxes(3)

    def refused(message, *boxes, **options):
        with pytest.raises(ValueError, match=message):
            rotated_iou(*boxes, backend=backend, **options)

    refused(r"rotated_iou: a has shape \(3, 4\); use \(N, 5\) with columns cx, cy, w, h, angle_rad", a[:, :4], a)
    refused(r"rotated_iou: b has shape \(5,\); use \(N, 5\)", a, a[0])
    refused(r"b has shape \(0,\); .* without boxes that is torch.empty\(0, 5\)", a, torch.empty(0))
    refused(r"rotated_iou: a has 3 boxes and b 2; aligned boxes come in pairs", a, a[:2], aligned=True)
    refused(r"rotated_iou: mode='giou' is unknown; use iou or iof", a, a, mode="giou")
    refused(r"rotated_iou: a is torch.float32 and b is torch.float64; give them one dtype", a, a.double())
    for dtype in (torch.bfloat16, torch.float16):
        refused(rf"a is {dtype}, which rounds pixels; use float32 or float64 \(decode boxes with", a.to(dtype), a)
    refused("a is torch.int64, not a floating dtype; use float32", a.long(), a)
