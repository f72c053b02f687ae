"""No tensor with an axis of window positions: the resident set may rise by outputs and gradients and little more."""

from pathlib import Path

import pytest
import torch

from vantage.analysis.benchmark import release_heap, resident
from vantage.ops.neighborhood_attention.windows import Axis

from .cases import through_op


def rise_of(call) -> int:
    """Bytes by which the resident set rises at its highest during the call."""
    if not release_heap():
        pytest.skip("memory is measured under Linux with glibc")
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the high-water mark of the resident set cannot be reset here")
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def forward_and_backward(length, heads=4, dim=16, kernel=13):
    axes = (Axis(length, kernel),) * 2
    q, k, v = (torch.randn(1, length, length, heads, dim).requires_grad_() for _ in range(3))
    grad_out = torch.randn(1, length, length, heads, dim)

    def call():
        out, _ = through_op("native")(q, k, v, axes=axes, scale=0.25, bias=None)
        torch.autograd.grad(out, (q, k, v), grad_out)

    return call


@pytest.mark.parametrize("length", [112, 224])
def test_native_memory_is_linear_in_tokens(length):
    for _ in range(2):  # all code is loaded, which takes tens of megabytes
        forward_and_backward(40)()
    tensor = length**2 * 4 * 16 * 4
    pairs = length**2 * 4 * 13**2 * 4  # one float per pair, ten times a tensor
    rise = rise_of(forward_and_backward(length))
    # out and three gradients; a thread's scratch holds some rows and the gradients of one head
    assert 3 * tensor < rise < 5 * tensor + 0.2 * pairs, (rise / tensor, pairs / tensor)
