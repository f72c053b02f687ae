"""Every backend against the float64 reference on the shared cases: out, lse and all gradients, in poisoned memory.

The Triton kernels have their own file for the interpreter; what cannot run here is skipped with its reason.
"""

import functools

import pytest
import torch

from vantage.ops import neighborhood_attention

from .cases import (
    CASES,
    LAYOUTS,
    SMALL_CASES,
    assert_near,
    case,
    check,
    expected,
    inputs,
    lay_out,
    through_op,
    tolerance,
)

REGISTERED = ["native"]  # of those that run on a CPU
DIFFERENTIABLE = [*REGISTERED, "tiled-dense", "tiled-halo", "reference"]
GPU = [pytest.param(name, marks=pytest.mark.gpu) for name in ("triton", "cuda", "flex", "tiled-halo")]
FEW_CASES = CASES[1::4]

pytestmark = pytest.mark.usefixtures("poisoned")


def backends(names):
    return pytest.mark.parametrize("backend", names, indirect=True)


def cases(values):
    return pytest.mark.parametrize("case", values, ids=str)


@backends(DIFFERENTIABLE)
@cases(CASES)
def test_float32(backend, case):
    check(through_op(backend), case, torch.float32)


@backends(REGISTERED)
@cases(CASES)
def test_bfloat16(backend, case):
    check(through_op(backend), case, torch.bfloat16)


@backends(["tiled-dense", "tiled-halo", "reference"])
@cases(FEW_CASES)
def test_bfloat16_of_composites(backend, case):
    check(through_op(backend), case, torch.bfloat16)


@backends(["tiled-dense", "tiled-halo"])
@cases(FEW_CASES)
def test_float64(backend, case):
    check(through_op(backend), case, torch.float64)


@cases(SMALL_CASES[::2])
def test_flex_forward(case):
    check(through_op("flex"), case, torch.float32, gradients=False)


@backends(GPU)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@cases(CASES)
def test_on_cuda(backend, case, dtype):
    check(through_op(backend), case, dtype, device="cuda")


@backends(DIFFERENTIABLE)
@pytest.mark.parametrize("which", ["out", "lse"])
def test_gradients_of_one_result(backend, which):
    """The other result's gradient is None, and that of a sum has stride 0."""
    shape = case((6, 9), (3, 4), dilation=(2, 1), with_bias=True)
    leaves = [inputs(shape, torch.float32)[name].requires_grad_() for name in ("q", "k", "v", "bias")]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    sums = []
    for attend, (q, k, v, bias) in ((through_op(backend), leaves), (through_op("reference"), exact)):
        results = dict(zip(("out", "lse"), attend(q, k, v, shape.axes, 0.4, bias)))
        sums.append(results[which].sum())
    grads = (torch.autograd.grad(total, tensors, allow_unused=True) for total, tensors in zip(sums, (leaves, exact)))
    for name, got, wanted in zip(("q", "k", "v", "bias"), *grads):
        assert (wanted is None) == (which == "lse" and name == "v")
        if wanted is not None:
            assert_near(f"gradient of {name}", got, wanted, tolerance(torch.float32))
        elif got is not None:
            assert not got.any()


@backends(DIFFERENTIABLE)
@pytest.mark.parametrize("needed", ["q", "k", "v", "bias"])
def test_gradient_of_one_input(backend, needed):
    shape = case((7, 6), 3, with_bias=True)
    made = inputs(shape, torch.float32)
    leaf = made[needed].requires_grad_()
    out, lse = through_op(backend)(made["q"], made["k"], made["v"], shape.axes, shape.head_dim**-0.5, made["bias"])
    loss = (out * made["grad_out"]).sum() + (lse * made["grad_lse"]).sum()
    (grad,) = torch.autograd.grad(loss, leaf)
    assert_near(f"gradient of {needed}", grad, expected(shape, torch.float32).grads[needed], tolerance(torch.float32))


@backends(DIFFERENTIABLE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_other_layouts(backend, layout):
    """Gradients that arrive are as little contiguous as inputs: those of a linear layer on the heads are."""
    shape = case((6, 7), 3, head_dim=12, heads=3)
    made = inputs(shape, torch.float32)
    q, k, v = (made[name].requires_grad_() for name in "qkv")
    out, lse = through_op(backend)(q, k, v, shape.axes, shape.head_dim**-0.5, None)
    grad_lse = made["grad_lse"].transpose(1, 3).contiguous().transpose(1, 3)
    grad_out = lay_out(made["grad_out"].expand(3, *out.shape), layout)[1]
    grads = torch.autograd.grad((out, lse), (q, k, v), (grad_out, grad_lse))
    for name, grad in zip("qkv", grads):
        assert_near(f"gradient of {name}", grad, expected(shape, torch.float32).grads[name], tolerance(torch.float32))


@backends(DIFFERENTIABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_bias_of_any_floating_dtype(backend, dtype):
    shape = case((6, 7), 3, with_bias=True)
    made = inputs(shape, torch.float32)
    bias = made["bias"].to(dtype).requires_grad_()
    out, lse = through_op(backend)(made["q"], made["k"], made["v"], shape.axes, shape.head_dim**-0.5, bias)
    (grad,) = torch.autograd.grad((out, lse), bias, (made["grad_out"], made["grad_lse"]))
    assert grad.dtype == dtype
    coarse = 4 * torch.finfo(dtype).eps + tolerance(torch.float32)
    assert_near("gradient of bias", grad, expected(shape, torch.float32).grads["bias"], coarse)


@backends([*DIFFERENTIABLE, "flex"])
def test_large_logits_do_not_overflow(backend):
    shape = case((8, 9), 3, head_dim=16)
    made = inputs(shape, torch.float32)
    q, k, v = (made[name] for name in "qkv")
    out, lse = through_op(backend)(q, k, v, shape.axes, 1e3, None)
    exact = through_op("reference")(q.double(), k.double(), v.double(), shape.axes, 1e3, None)
    assert_near("out", out, exact[0], 2e-2)
    assert_near("lse", lse, exact[1], 1e-6)


@backends(REGISTERED)
def test_same_bits_twice(backend):
    shape = case((19, 21), 5, with_bias=True, batch=3)
    made = inputs(shape, torch.float32)
    leaves = [made[name].requires_grad_() for name in ("q", "k", "v", "bias")]
    runs = []
    for _ in range(2):
        results = through_op(backend)(*leaves[:3], shape.axes, 0.3, leaves[3])
        runs.append([*results, *torch.autograd.grad(results, leaves, (made["grad_out"], made["grad_lse"]))])
    assert all(map(torch.equal, *runs))


@backends([*DIFFERENTIABLE, "flex"])
def test_empty_batch(backend):
    q, k, v = (torch.randn(0, 7, 9, 2, 4) for _ in range(3))
    bias = torch.randn(2, 5, 5)
    for tensor in (q, k, v, bias):
        tensor.requires_grad_(backend != "flex")
    through_op(backend)(*torch.randn(3, 1, 7, 9, 2, 4), axes_of(q, 3), 1.0, None)  # skips what cannot run
    out, lse = neighborhood_attention(q, k, v, 3, bias=bias, return_lse=True, backend=backend)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    assert (lse.shape, lse.dtype) == (q.shape[:-1], torch.float32)
    if backend != "flex":
        (out.sum() + lse.sum()).backward()
        assert q.grad.shape == k.grad.shape == v.grad.shape == q.shape
        assert torch.equal(bias.grad, torch.zeros_like(bias))


def axes_of(q, kernel):
    return case(tuple(q.shape[1:-2]), kernel).axes


@backends(REGISTERED)
def test_what_is_kept_for_backward(backend):
    q, k, v = (torch.randn(1, 8, 9, 2, 4, requires_grad=True) for _ in range(3))
    bias = torch.randn(2, 5, 5, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        through_op(backend)(q, k, v, axes_of(q, 3), 0.5, bias)
    assert sum(tensor.numel() for tensor in saved) == 4 * q.numel() + bias.numel() + q.numel() // 4
    attend = functools.partial(through_op(backend), axes=axes_of(q, 3), scale=0.5, bias=None)
    with torch.no_grad():
        out, lse = attend(q, k, v)
    assert out.grad_fn is None
    assert lse.grad_fn is None
    assert not attend(*(t.detach() for t in (q, k, v)))[0].requires_grad
