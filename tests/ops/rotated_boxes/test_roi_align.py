"""Rotated RoI align: published values, torchvision for upright boxes, turned maps, both backends."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torchvision.ops import box_convert, roi_align

from vantage.ops.rotated_boxes import reference, rotated_roi_align

from .cases import both_backends

MAP = torch.tensor([[[[1.0, 2], [3, 4]]]])
RATIOS = [0, 1, 2, 3]


def rois(count: int, images: int = 2, dtype=torch.float32, size: float = 40.0) -> torch.Tensor:
    """In an image of `size`, partly outside of it."""
    image = torch.randint(images, (count, 1)).to(dtype)
    centre = (torch.rand(count, 2, dtype=dtype) * 1.4 - 0.2) * size
    sides = (0.1 + torch.rand(count, 2, dtype=dtype)) * size / 2
    return torch.cat((image, centre, sides, torch.rand(count, 1, dtype=dtype) * 7 - 3.5), 1)


@both_backends
@pytest.mark.parametrize("ratio", RATIOS)
def test_published_values(backend, ratio):
    box = torch.tensor([[0, 0.5, 0.5, 1, 1, 0]])
    out = rotated_roi_align(MAP, box, 2, sampling_ratio=ratio, backend=backend)
    torch.testing.assert_close(out, torch.tensor([[[[1, 1.25], [1.5, 1.75]]]]))
    box[0, 5] = -math.pi / 2  # counter-clockwise
    out = rotated_roi_align(MAP, box, 2, sampling_ratio=ratio, backend=backend)
    torch.testing.assert_close(out, torch.tensor([[[[1.5, 1], [1.75, 1.25]]]]))


@both_backends
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("size", [1, 3, (2, 5)])
def test_upright_boxes_as_torchvision(backend, ratio, size, monkeypatch):
    monkeypatch.setattr(reference, "CHUNK_SAMPLES", 1000)
    features, boxes = torch.randn(2, 3, 13, 17), rois(30)
    boxes[:, 5] = 0
    corners = torch.cat((boxes[:, :1], box_convert(boxes[:, 1:5], "cxcywh", "xyxy")), 1)
    wanted = roi_align(features, corners, size, 0.4, ratio, aligned=True)
    out = rotated_roi_align(features, boxes, size, 0.4, ratio, backend=backend)
    torch.testing.assert_close(out, wanted, atol=2e-5, rtol=1e-4)


@both_backends
def test_turning_the_map_and_the_box_together_changes_nothing(backend):
    features, boxes = torch.randn(2, 3, 12, 12), rois(20, size=12.0)
    wanted = rotated_roi_align(features, boxes, (3, 4), backend=backend)
    turned = boxes.clone()  # by a quarter clockwise on the screen: (x, y) -> (12 - y, x)
    turned[:, 1], turned[:, 2], turned[:, 5] = 12 - boxes[:, 2], boxes[:, 1], boxes[:, 5] + math.pi / 2
    out = rotated_roi_align(features.rot90(-1, (2, 3)), turned, (3, 4), backend=backend)
    torch.testing.assert_close(out, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", ["native"], indirect=True)
@pytest.mark.parametrize("ratio", RATIOS)
def test_both_backends_agree_in_value_and_gradient(backend, ratio):
    boxes, grad, results = rois(25, dtype=torch.float64), torch.randn(25, 5, 3, 4, dtype=torch.float64), []
    made = torch.randn(2, 5, 20, 11, dtype=torch.float64)
    for name in (backend, "reference"):
        features = made.clone().requires_grad_()
        out = rotated_roi_align(features, boxes, (3, 4), 0.5, ratio, backend=name)
        results.append((out.detach(), *torch.autograd.grad(out, features, grad)))
    for got, wanted in zip(*results):
        torch.testing.assert_close(got, wanted)


@both_backends
@pytest.mark.parametrize("ratio", [0, 2])
def test_gradcheck(backend, ratio):
    features = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    boxes = rois(4, dtype=torch.float64, size=6.0)

    def align(features):
        return rotated_roi_align(features, boxes, 2, 1.0, ratio, backend=backend)

    assert gradcheck(align, features)
    if backend != "reference" or not torch.__version__.startswith("2.10."):  # whose grid_sample is differentiable once
        assert gradgradcheck(align, features)


@both_backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_sampled_in_float32(backend, dtype):
    features, boxes = torch.randn(2, 3, 9, 9).to(dtype), rois(5, size=9.0)
    out = rotated_roi_align(features, boxes, 2, backend=backend)
    assert out.dtype == dtype
    assert torch.equal(out, rotated_roi_align(features.float(), boxes, 2, backend=backend).to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rotated_roi_align(features, boxes, 2, backend=backend), out)


@both_backends
def test_layouts_and_nothing(backend):
    features, boxes = torch.randn(2, 3, 9, 7), rois(5, size=9.0)
    wanted = rotated_roi_align(features, boxes, 2, backend=backend)
    for laid in (features.to(memory_format=torch.channels_last), features.transpose(2, 3).contiguous().transpose(2, 3)):
        torch.testing.assert_close(rotated_roi_align(laid, boxes, 2, backend=backend), wanted)
    features.requires_grad_()
    none = rotated_roi_align(features, boxes[:0], 2, backend=backend)
    assert none.shape == (0, 3, 2, 2)
    (grad,) = torch.autograd.grad(none.sum(), features)
    assert not grad.any()
    assert rotated_roi_align(features[:, :0], boxes, 2, backend=backend).shape == (5, 0, 2, 2)
    one = rotated_roi_align(torch.ones(1, 1, 1, 1), torch.tensor([[0, 0.5, 0.5, 1, 1, 0.3]]), 3, backend=backend)
    assert torch.equal(one, torch.ones(1, 1, 3, 3))


@both_backends
@pytest.mark.parametrize("image", [-1.0, 2.0])
def test_an_image_that_is_not_in_the_batch(backend, image):
    boxes = rois(3)
    boxes[1, 0] = image
    with pytest.raises(RuntimeError, match=r"rotated_roi_align: box.* image.* there are 2; column 0 is the image's"):
        rotated_roi_align(torch.zeros(2, 1, 4, 4), boxes, 2, backend=backend)


@both_backends
def test_a_box_that_is_not_finite_samples_nothing(backend):
    for value in (math.nan, math.inf):
        for column in range(1, 5):
            boxes = torch.tensor([[0, 2.0, 2, 3, 2, 0.1]])
            boxes[0, column] = value
            assert not rotated_roi_align(torch.ones(1, 1, 4, 4), boxes, 2, backend=backend).any()


@pytest.mark.parametrize("backend", ["native"], indirect=True)
@pytest.mark.parametrize("sides", [(1e4, 1e4), (1e-9, 1e12), (math.nan, 4)])
def test_samples_per_pixel_of_a_box_beyond_any_map(backend, sides):
    boxes = torch.tensor([[0, 2.0, 2, *sides, 0.1]])
    with pytest.raises(RuntimeError, match=r"rotated_roi_align: box 0 covers .* pixels of the map; clip it, or set"):
        rotated_roi_align(torch.ones(1, 1, 4, 4), boxes, 2, sampling_ratio=0, backend=backend)


def test_refusals():
    features, boxes = torch.zeros(2, 1, 4, 4), rois(3)

    def refused(message, features=features, boxes=boxes, size=2, **options):
        with pytest.raises(ValueError, match=message):
            rotated_roi_align(features, boxes, size, **options)

    refused(r"features are torch.float32 of shape \(1, 4, 4\); use floats \(B, C, H, W\)", features[0])
    refused(r"boxes has shape \(3, 5\); use \(N, 6\) with columns batch index, cx, cy, w", boxes=boxes[:, 1:])
    refused(r"output_size=0 has no bins; use sizes of at least 1", size=0)
    refused(r"sampling_ratio=-1 is negative; use 0 to choose it per box", sampling_ratio=-1)
