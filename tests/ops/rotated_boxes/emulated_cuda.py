"""Compares the registered ops on a device with the reference. As a script it does so with kernels/rotated_boxes/cuda.cu
compiled as C++, in a process of its own: there the ops of CPU tensors are those kernels, not the native ones."""

import sys

import torch
from torch import Tensor

from vantage.ops import build
from vantage.ops.rotated_boxes import reference, registration

DTYPES = (torch.float32, torch.float64)


def boxes(count: int, dtype: torch.dtype, spread: float = 60.0) -> Tensor:
    sides = 4 * 16 ** torch.rand(count, 2, dtype=dtype)
    angles = (torch.rand(count, 1, dtype=dtype) - 0.5) * 6.3
    return torch.cat((spread * torch.rand(count, 2, dtype=dtype), sides, angles), 1)


def close(ours: Tensor, theirs: Tensor, what: str, atol: float = 1e-6) -> None:
    torch.testing.assert_close(
        ours.cpu(), theirs.to(ours.dtype), atol=atol, rtol=1e-4, equal_nan=True, msg=lambda m: f"{what}: {m}"
    )


def check_iou(device: str) -> None:
    for dtype in DTYPES:
        for count, others in ((1, 1), (7, 130), (0, 3), (3, 0), (64, 64)):
            for is_iof in (False, True):
                a, b = boxes(count, dtype), boxes(others, dtype)
                if count == others == 64:
                    b[:20] = a[:20]
                    b[20:40] = a[20:40] + 1e-4 * torch.randn(20, 5)
                    a[40, 2], b[41, 3], a[42, 0] = -3.0, 0.0, torch.nan
                    a[43:47, 2] = 1e4  # slivers
                for aligned in {False, count == others}:
                    what = f"iou {dtype} {count} x {others} iof {is_iof} aligned {aligned}"
                    args = (aligned, is_iof)
                    close(registration.iou(a.to(device), b.to(device), *args), reference.rotated_iou(a, b, *args), what)


def check_gradients(device: str) -> None:
    for aligned in (False, True):
        for is_iof in (False, True):
            found = []
            a, b = boxes(33, torch.float64, 30.0), boxes(33, torch.float64, 30.0)
            weights = torch.randn(33) if aligned else torch.randn(33, 33)
            for op, place in ((registration.iou, device), (reference.rotated_iou, "cpu")):
                first, second = (x.clone().to(place).requires_grad_() for x in (a, b))
                (op(first, second, aligned, is_iof) * weights.to(place)).sum().backward()
                found.append((first.grad, second.grad))
            for ours, theirs in zip(*found):
                close(ours, theirs, f"gradient aligned {aligned} iof {is_iof}", atol=1e-9)
                assert theirs.abs().max() > 1e-3


def check_nms(device: str) -> None:
    for count in (0, 1, 63, 64, 65, 700):
        for threshold in (0.0, 0.1, 0.5):
            found = boxes(count, torch.float32, 200.0)
            if count > 5:
                found[5, 4] = torch.inf
                found[count // 2 :] = found[: count - count // 2] + 0.5  # neighbours far behind in the order
            for labels in (None, torch.randint(0, 3, (count,))):
                ours = registration.nms(found.to(device), None if labels is None else labels.to(device), threshold)
                theirs = reference.rotated_nms(found, labels, threshold)
                assert torch.equal(ours.cpu(), theirs), f"nms {count} {threshold}"
    assert 0 < theirs.sum() < count - 50  # something stayed and something went


def check_points(device: str) -> None:
    for dtype in DTYPES:
        points, some = 60 * torch.rand(50, 2, dtype=dtype), boxes(9, dtype)
        ours = registration.points_in(points.to(device), some.to(device))
        assert torch.equal(ours.cpu(), reference.points_in_rotated_boxes(points, some))
        assert 0 < ours.sum() < ours.numel()
        assert registration.points_in(points[:0].to(device), some.to(device)).shape == (0, 9)


def check_roi_align(device: str) -> None:
    for dtype in DTYPES:
        for height, width, scale, samples in ((2, 3, 0.25, 2), (1, 1, 0.125, 0), (7, 7, 0.5, 1)):
            features = torch.randn(2, 5, 9, 11, dtype=dtype)
            regions = torch.cat((torch.tensor([[0.0], [1], [1], [0]]), boxes(4, torch.float32, 40.0)), 1).double()
            results = []
            for op, place in ((registration.roi_align, device), (reference.rotated_roi_align, "cpu")):
                source = features.clone().to(place).requires_grad_()
                out = op(source, regions.to(place), height, width, scale, samples)
                (out * torch.arange(out.numel(), dtype=dtype, device=place).view(out.shape).cos()).sum().backward()
                results.append((out.detach(), source.grad))
            for what, ours, theirs in zip(("roi align", "its gradient"), *results):
                close(ours, theirs, f"{what} {dtype} {height}x{width}", atol=1e-5)
                assert theirs.abs().max() > 1e-2
    refused = torch.tensor([[2.0, 5, 5, 8, 8, 0], [-1, 5, 5, 8, 8, 0], [0, 5, 5, 1e6, 1e6, 0]], dtype=torch.float64)
    assert registration.roi_align(features.to(device), refused.to(device), 2, 2, 1.0, 0).isnan().all()


CHECKS = (check_iou, check_gradients, check_nms, check_points, check_roi_align)


if __name__ == "__main__":
    build.load_library(sys.argv[1])
    for check in CHECKS:
        torch.manual_seed(0)
        check("cpu")
        print(check.__name__)
