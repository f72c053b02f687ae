"""Every backend under what PyTorch does to a function: opcheck, compile, export, autocast, vmap, second derivatives."""

import pytest
import torch
from torch import nn
from torch.library import opcheck

from vantage.ops import neighborhood_attention
from vantage.ops.neighborhood_attention.registration import window_of

from .cases import assert_near, case, inputs, through_op, tolerance

REGISTERED = ["native"]  # of those that run on a CPU
BACKENDS = [*REGISTERED, "tiled-dense", "tiled-halo", "reference"]
ON_GPU = [pytest.param(name, marks=pytest.mark.gpu) for name in ("triton", "cuda")]
PLAIN = case((7, 8), 3, with_bias=True)
OPTIONS = case((8, 9), (3, 2), dilation=(1, 3), stride=(2, 1), is_causal=(True, False))


def backends(names):
    return pytest.mark.parametrize("backend", names, indirect=True)


def leaves_of(shape, dtype=torch.float32, device="cpu"):
    made = inputs(shape, dtype, device)
    return [made[name].requires_grad_() for name in ("q", "k", "v", "bias") if name in made]


def device_of(backend):
    return "cuda" if backend in ("triton", "cuda") else "cpu"


def op(backend, shape):
    """q, k, v[, bias] -> (out, lse)"""
    attend, axes = through_op(backend), shape.axes
    return lambda q, k, v, bias=None: attend(q, k, v, axes, 0.4, bias)


@backends([*REGISTERED, *ON_GPU])
@pytest.mark.parametrize("shape", [PLAIN, OPTIONS], ids=str)
def test_opcheck(backend, shape):
    leaves = leaves_of(shape, device=device_of(backend))
    bias = leaves[3] if shape.with_bias else None
    results = op(backend, shape)(*leaves)  # skips what cannot run
    window = (*window_of(shape.axes), 0.4)
    forward = getattr(torch.ops.vantage, f"neighborhood_attention_{backend}").default
    opcheck(forward, (*leaves[:3], bias, *window))
    backward = getattr(torch.ops.vantage, f"neighborhood_attention_{backend}_backward").default
    q, k, v, bias, out, lse = (t if t is None else t.detach() for t in (*leaves[:3], bias, *results))
    for grad_lse in (None, torch.randn_like(lse)):
        opcheck(backward, (torch.randn_like(out), grad_lse, q, k, v, bias, out, lse, *window))


@backends([*REGISTERED, *ON_GPU])
def test_second_derivatives_are_refused_with_a_way_out(backend):
    leaves = leaves_of(PLAIN, device=device_of(backend))
    (grad,) = torch.autograd.grad(op(backend, PLAIN)(*leaves)[0].square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="is differentiable once; use backend='reference' or 'tiled'"):
        grad.sum().backward()


@backends([*BACKENDS, *ON_GPU])
@pytest.mark.parametrize("shape", [PLAIN, OPTIONS], ids=str)
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_fullgraph(backend, shape, compiler):
    torch._dynamo.reset()
    leaves = leaves_of(shape, device=device_of(backend))
    wanted = op(backend, shape)(*leaves)
    got = torch.compile(op(backend, shape), fullgraph=True, backend=compiler)(*leaves)
    cotangents = tuple(torch.randn_like(t) for t in wanted)
    for ours, theirs in zip(
        (*got, *torch.autograd.grad(got, leaves, cotangents)),
        (*wanted, *torch.autograd.grad(wanted, leaves, cotangents)),
    ):
        torch.testing.assert_close(ours, theirs)


def test_compile_of_auto_traces_no_choice():
    """The choice is made outside of the graph, although nothing was run before."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda q: neighborhood_attention(q, q, q, (2, 3)), fullgraph=True, backend="aot_eager")
    q = torch.randn(1, 11, 13, 1, 4)
    torch.testing.assert_close(compiled(q), neighborhood_attention(q, q, q, (2, 3)))


@pytest.mark.skipif(torch.__version__.startswith("2.10."), reason="Dynamo of torch 2.10 takes symbols for no constants")
@backends(["native", "tiled-halo"])
def test_a_dynamic_graph_has_a_fixed_map_and_any_batch(backend):
    torch._dynamo.reset()
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph

    attend = through_op(backend)
    attend(*torch.randn(3, 1, 7, 8, 2, 8), PLAIN.axes, 0.4, None)  # skips what cannot run
    compiled = torch.compile(  # axes are made while tracing, as the op makes them
        lambda q: attend(q, q, q, PLAIN.axes, 0.4, None)[0], fullgraph=True, backend=keep, dynamic=True
    )
    for batch in (3, 4, 6):  # equal sizes of one call share a symbol, and heads are fixed, too
        q = torch.randn(batch, 7, 8, 2, 8)
        torch.testing.assert_close(compiled(q), attend(q, q, q, PLAIN.axes, 0.4, None)[0])
    assert len(graphs) == 1


class Layer(nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(2, 5, 5))
        self.backend = backend

    def forward(self, q, k, v):
        return neighborhood_attention(q, k, v, 3, bias=self.bias, return_lse=True, backend=self.backend)


@backends([*BACKENDS, "flex", *ON_GPU])
@pytest.mark.parametrize("strict", [True, False])
def test_export(backend, strict):
    device = device_of(backend)
    q, k, v = torch.randn(3, 2, 7, 8, 2, 16, device=device)
    through_op(backend)(q, k, v, PLAIN.axes, 1.0, None)  # skips what cannot run
    layer = Layer(backend).to(device).requires_grad_(backend != "flex")
    program = torch.export.export(layer, (q, k, v), strict=strict)
    torch.testing.assert_close(program.module()(q, k, v), layer(q, k, v))


@backends([*BACKENDS, *ON_GPU])
@pytest.mark.parametrize("dtypes", [(torch.float32,) * 3, (torch.float32, torch.bfloat16, torch.float16)], ids=str)
def test_autocast(backend, dtypes):
    device = device_of(backend)
    leaves = leaves_of(PLAIN, device=device)
    mixed = [leaf.to(dtype) for leaf, dtype in zip(leaves, dtypes)]
    cast = [leaf.detach().bfloat16().double().requires_grad_() for leaf in mixed]
    with torch.autocast(device, torch.bfloat16):
        out, lse = op(backend, PLAIN)(*mixed, leaves[3])
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    bias = leaves[3].detach().double().requires_grad_()
    exact = op("reference", PLAIN)(*cast, bias)
    assert_near("out", out, exact[0].cpu(), tolerance(torch.bfloat16))
    assert_near("lse", lse, exact[1].cpu(), tolerance(torch.bfloat16) / 8)
    grads = torch.autograd.grad(out.sum() + lse.sum(), leaves)
    wanted = torch.autograd.grad(exact[0].sum() + exact[1].sum(), [*cast, bias])
    for name, leaf, ours, theirs in zip(("q", "k", "v", "bias"), leaves, grads, wanted):
        assert ours.dtype == leaf.dtype
        assert_near(f"gradient of {name}", ours, theirs.cpu(), 2 * tolerance(torch.bfloat16))


@backends([*BACKENDS, *ON_GPU])
def test_float64_is_not_autocast(backend):
    q, k, v = torch.randn(3, 1, 7, 8, 2, 4, dtype=torch.float64, device=device_of(backend))
    with torch.autocast(q.device.type, torch.bfloat16):
        assert neighborhood_attention(q, k, v, 3).dtype == torch.float64


@backends([*BACKENDS, *ON_GPU])
@pytest.mark.parametrize("mapped", ["q", "qkv", "qk-last", "bias", "qkv-bias"])
def test_vmap(backend, mapped):
    """Over tensors that have a batch of their own: as a loop, in values and gradients."""
    attend, device = op(backend, PLAIN), device_of(backend)
    parts = ["bias"] if mapped == "bias" else [*mapped.partition("-")[0], *(["bias"] if "bias" in mapped else [])]
    dim = -1 if mapped.endswith("last") else 1
    stacks, in_dims = [], []
    for name, leaf in zip(("q", "k", "v", "bias"), leaves_of(PLAIN, device=device)):
        is_mapped = name in parts
        stack = torch.stack([leaf, leaf * 2, leaf.flip(0)], dim) if is_mapped else leaf
        stacks.append(stack.detach().requires_grad_())
        in_dims.append(dim if is_mapped else None)
    got = torch.vmap(attend, tuple(in_dims))(*stacks)
    rows = [[t if d is None else t.select(d, index) for t, d in zip(stacks, in_dims)] for index in range(3)]
    wanted = tuple(map(torch.stack, zip(*(attend(*row) for row in rows))))
    cotangents = tuple(torch.randn_like(t) for t in wanted)
    for ours, theirs in zip(
        (*got, *torch.autograd.grad(got, stacks, cotangents)),
        (*wanted, *torch.autograd.grad(wanted, stacks, cotangents)),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@backends([*BACKENDS, *ON_GPU])
@pytest.mark.parametrize("with_bias", [False, True])
def test_batched_gradients(backend, with_bias):
    """As torch.autograd.functional.jacobian(vectorize=True) asks for them."""
    leaves = leaves_of(PLAIN, device=device_of(backend))[: 4 if with_bias else 3]
    results = op(backend, PLAIN)(*leaves)
    cotangents = tuple(torch.randn(3, *t.shape, device=t.device) for t in results)
    got = torch.autograd.grad(results, leaves, cotangents, is_grads_batched=True, retain_graph=True)
    for index in range(3):
        wanted = torch.autograd.grad(results, leaves, tuple(t[index] for t in cotangents), retain_graph=True)
        for ours, theirs in zip(got, wanted):
            torch.testing.assert_close(ours[index], theirs, rtol=1e-4, atol=1e-5)


@backends(REGISTERED)
def test_vmap_over_nothing_is_refused(backend):
    q = torch.zeros(0, 1, 7, 8, 2, 4)
    through_op(backend)(*torch.randn(3, 1, 7, 8, 2, 4), PLAIN.axes, 1.0, None)  # skips what cannot run
    with pytest.raises(ValueError, match="dimension of size 0"):
        torch.vmap(lambda q: neighborhood_attention(q, q, q, 3, backend=backend))(q)


@backends(["tiled-halo", "reference"])
def test_a_first_call_under_functorch_leaves_nothing_behind(backend):
    q, k, v = torch.randn(3, 1, 12, 14, 2, 4)

    def total(q):
        return neighborhood_attention(q, k, v, (4, 5), backend=backend).square().sum()

    under_functorch = torch.func.grad(total)(q)
    q.requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(total(q), q)[0], under_functorch)
