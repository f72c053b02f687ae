"""Registered ops under opcheck, in poisoned memory and compiled; which backend runs, and what a missing one says."""

import logging
import subprocess
import sys

import pytest
import torch
from torch.library import opcheck

from vantage.ops.rotated_boxes import (
    canonical,
    dispatch,
    from_corners,
    from_cxcywhr_degrees,
    gwd_loss,
    kfiou_loss,
    kld_loss,
    native,
    points_in_rotated_boxes,
    probiou_loss,
    rotated_iou,
    rotated_iou_loss,
    rotated_nms,
    rotated_roi_align,
    to_corners,
    to_cxcywhr_degrees,
)

from .cases import random_boxes

needs_native = pytest.mark.parametrize("backend", ["native"], indirect=True)


def boxes_of(count, requires_grad=False, dtype=torch.float32):
    return random_boxes(count, dtype).requires_grad_(requires_grad)


def rois():
    return torch.cat((torch.tensor([[0.0], [1], [0]]), random_boxes(3) / 10), 1).double()


def calls():
    """Name -> arguments of a registered op."""
    labels = torch.tensor([1, 0, 1, 0])
    features = torch.randn(2, 3, 5, 6)
    return {
        "rotated_iou_native": [
            (boxes_of(4, True), boxes_of(5, True), False, False),
            (boxes_of(4, True), boxes_of(4), True, True),
            (boxes_of(0), boxes_of(3), False, False),
            (boxes_of(3, True, torch.float64), boxes_of(3, True, torch.float64), True, False),
        ],
        "rotated_iou_native_backward": [
            (torch.rand(4, 5), boxes_of(4), boxes_of(5), False, False),
            (torch.rand(4), boxes_of(4), boxes_of(4), True, True),
        ],
        "rotated_nms_native": [(boxes_of(4), labels, 0.5), (boxes_of(4), None, 0.5), (boxes_of(0), None, 0.5)],
        "points_in_rotated_boxes_native": [(torch.rand(6, 2), boxes_of(4))],
        "rotated_roi_align_native": [(features.requires_grad_(), rois(), 2, 3, 0.5, 0)],
        "rotated_roi_align_native_backward": [(torch.randn(3, 3, 2, 3), rois(), [2, 3, 5, 6], 0.5, 2)],
    }


@needs_native
@pytest.mark.parametrize("op", list(calls()))
def test_opcheck(backend, op):
    for arguments in calls()[op]:
        opcheck(getattr(torch.ops.vantage, op).default, arguments)


@needs_native
def test_every_value_is_written(backend):
    """Memory that torch.empty hands out is NaN, or ones."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all()
        a = boxes_of(40, True)
        iou = rotated_iou(a, boxes_of(50), backend=backend)
        assert iou.isfinite().all()
        assert torch.autograd.grad(iou.sum(), a)[0].isfinite().all()
        pair = rotated_iou(a, boxes_of(40), aligned=True, backend=backend)
        assert torch.autograd.grad(pair.sum(), a)[0].isfinite().all()
        features = torch.randn(2, 3, 8, 8, requires_grad=True)
        out = rotated_roi_align(features, rois().float(), 3, backend=backend)
        assert out.isfinite().all()
        assert torch.autograd.grad(out.sum(), features)[0].isfinite().all()
        far = torch.full((7, 2), 1e5)
        assert not points_in_rotated_boxes(far, boxes_of(9), backend=backend).any()
    finally:
        torch.use_deterministic_algorithms(False)


@needs_native
def test_same_bits_with_any_number_of_threads(backend):
    a, b, regions, results = boxes_of(300), boxes_of(400), rois().float(), []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            leaves = [t.clone().requires_grad_() for t in (a, b)]
            iou = rotated_iou(*leaves, backend=backend)
            features = torch.linspace(-1, 1, 2 * 40 * 64).view(2, 40, 8, 8).requires_grad_()
            out = rotated_roi_align(features, regions, 3, backend=backend)
            grads = torch.autograd.grad((iou.square().sum(), out.square().sum()), (*leaves, features))
            results.append((iou, out, *grads))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *results))


def assert_compiles(function, arguments, leaves, **options):
    """In one graph, with equal outputs and gradients, also where no call came before."""
    torch._dynamo.reset()
    dispatch.cached_resolved.cache_clear()
    dispatch.load_backends.cache_clear()
    dispatch.FUNCTIONS.clear()
    # boxes that stay are as many as their values say
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        outputs = torch.compile(function, backend="aot_eager", fullgraph=True, **options)(*arguments)
    results = []
    for given in (outputs, function(*arguments)):
        total = sum(out.sum() for out in given if out.requires_grad)
        results.append((*given, *torch.autograd.grad(total, leaves)))
    for got, wanted in zip(*results):
        torch.testing.assert_close(got, wanted)


@needs_native
@pytest.mark.parametrize("dynamic", [False, True])
def test_ops_compile_without_a_graph_break(backend, dynamic):
    def ops(a, b, points, scores, labels, features, regions):
        return (
            rotated_iou(a, b),
            rotated_iou(a, b, aligned=True, mode="iof"),
            points_in_rotated_boxes(points, b),
            rotated_roi_align(features, regions, 3, 0.5),
            rotated_nms(b, scores, 0.3, labels=labels),
        )

    a, features = boxes_of(6, True), torch.randn(2, 3, 8, 8, requires_grad=True)
    arguments = (a, boxes_of(6), torch.rand(9, 2) * 60, torch.rand(6), torch.arange(6) % 2, features, rois().float())
    assert_compiles(ops, arguments, (a, features), dynamic=dynamic)


@needs_native
def test_losses_and_conversions_compile_without_a_graph_break(backend):
    def losses(pred, target):
        there_and_back = from_corners(to_corners(from_cxcywhr_degrees(to_cxcywhr_degrees(canonical(pred)))))
        of = (rotated_iou_loss, gwd_loss, kld_loss, kfiou_loss, probiou_loss)
        return there_and_back, *(loss(pred, target) for loss in of)

    pred = boxes_of(6, True)
    assert_compiles(losses, (pred, boxes_of(6)), (pred,))


@pytest.mark.slow
@needs_native
def test_inductor(backend):
    pred, target = boxes_of(6, True), boxes_of(6)
    torch._dynamo.reset()
    loss = torch.compile(lambda pred: rotated_iou_loss(pred, target).sum() + kld_loss(pred, target).sum())
    torch.testing.assert_close(loss(pred), rotated_iou_loss(pred, target).sum() + kld_loss(pred, target).sum())


@needs_native
def test_exports(backend):
    class Head(torch.nn.Module):
        def forward(self, features, regions):
            return rotated_roi_align(features, regions, 3, 0.5, backend=backend)

    features, regions = torch.randn(2, 3, 8, 8), rois().float()
    program = torch.export.export(Head(), (features, regions))
    torch.testing.assert_close(program.module()(features, regions), Head()(features, regions))


# dispatch


@pytest.fixture
def forget(monkeypatch):
    """What a test makes the machine look like is no answer for the next."""
    dispatch.cached_resolved.cache_clear()
    yield
    dispatch.cached_resolved.cache_clear()


@pytest.fixture
def no_compiler(forget, monkeypatch):
    monkeypatch.setattr(native, "library_error", lambda: "no C++ compiler was found; install g++")


def test_auto_without_a_compiler_says_once_that_it_uses_the_reference(no_compiler, caplog):
    with caplog.at_level(logging.INFO, logger="vantage.ops"):
        for _ in range(2):
            rotated_iou(boxes_of(2), boxes_of(2))
    (record,) = caplog.records
    assert record.getMessage() == (
        "rotated_iou: backend 'reference' for float32 on cpu; native cannot run: no C++ compiler was found; install g++"
    )


def test_native_without_a_compiler_says_what_to_install(no_compiler):
    message = r"rotated_nms: backend='native' cannot run: no C\+\+ compiler was found; install g\+\+"
    with pytest.raises(RuntimeError, match=message):
        rotated_nms(boxes_of(2), torch.rand(2), 0.5, backend="native")


def test_native_is_for_the_cpu():
    message = (
        "backend='native' cannot run: it runs on the CPU and the boxes are on meta; use backend='auto' or 'reference'"
    )
    with pytest.raises(RuntimeError, match=message):
        rotated_iou(*torch.empty(2, 3, 5, device="meta"), aligned=True, backend="native")


def test_an_unknown_backend():
    with pytest.raises(
        ValueError, match="rotated_iou: backend='triton' is unknown; use auto, native, cuda or reference"
    ):
        rotated_iou(boxes_of(2), boxes_of(2), backend="triton")


@pytest.mark.usefixtures("forget")
@needs_native
def test_auto_takes_native_on_the_cpu(backend, caplog):
    with caplog.at_level(logging.INFO, logger="vantage.ops"):
        rotated_iou(boxes_of(2), boxes_of(2))
    assert [record.getMessage() for record in caplog.records] == ["rotated_iou: backend 'native' for float32 on cpu"]


def test_importing_neither_builds_nor_loads_a_backend():
    code = (
        "import sys, vantage.ops.rotated_boxes\n"
        "heavy = [name for name in sys.modules if name in ('torch._dynamo', 'torchvision', 'shapely') or "
        "name.startswith('vantage.ops') and name.rpartition('.')[2] in ('native', 'build')]\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
