"""The portable backends, oracles of all others, against a loop over queries that follows the published border rule."""

import functools
import itertools
import math

import pytest
import torch

from vantage.ops import neighborhood_attention
from vantage.ops.neighborhood_attention import tiled

PATHS = ["reference", "tiled-dense", "tiled-halo"]


@pytest.fixture
def attend(backend):
    return functools.partial(neighborhood_attention, backend=backend)


def every_path(test):
    return pytest.mark.parametrize("backend", PATHS, indirect=True)(test)


def keys_of(i, length, kernel, dilation, stride, is_causal):
    """The keys of query i along one axis, as NATTEN's reference mask has them."""
    sequence = list(range(i % dilation, length, dilation))
    at = sequence.index(i)
    if is_causal:
        leader = min(at // stride * stride + stride - 1, len(sequence) - 1)
        return sequence[max(leader - kernel + 1, 0) : at + 1]
    leader = min(at // stride * stride + stride // 2, len(sequence) - 1)
    start = max(leader - kernel // 2, 0)
    start = min(start, len(sequence) - kernel)
    return sequence[start : start + kernel]


def loop_oracle(q, k, v, kernel, dilation, stride, is_causal, bias=None, scale=None):
    """out (B, *lengths, heads, d) and lse (B, *lengths, heads), one query at a time; all options per axis."""
    lengths = q.shape[1:-2]
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    out, lse = [], []
    for query in itertools.product(*map(range, lengths)):
        axes = zip(query, lengths, kernel, dilation, stride, is_causal)
        keys = list(itertools.product(*(keys_of(*axis) for axis in axes)))
        q_i = q[(slice(None), *query)]  # (B, heads, d)
        k_j, v_j = (torch.stack([t[(slice(None), *key)] for key in keys], 1) for t in (k, v))  # (B, K, heads, d)
        logits = (q_i[:, None] * k_j).sum(-1) * scale  # (B, K, heads)
        if bias is not None:
            places = [[(b - a) // d + size - 1 for a, b, d, size in zip(query, key, dilation, kernel)] for key in keys]
            logits = logits + torch.stack([bias[(slice(None), *place)] for place in places])
        weights = logits.exp() / logits.exp().sum(1, keepdim=True)
        out.append((weights[..., None] * v_j).sum(1))
        lse.append(logits.exp().sum(1).log())
    return tuple(torch.stack(parts, 1).unflatten(1, lengths) for parts in (out, lse))


# lengths, kernel, dilation, stride, is_causal: odd and even kernels, uneven residue classes, whole and single tokens
CASES = [
    ((1,), (1,), (1,), (1,), (False,)),
    ((11,), (4,), (2,), (3,), (True,)),
    ((13,), (3,), (4,), (2,), (False,)),
    ((1, 5), (1, 3), (1, 1), (1, 1), (False, False)),
    ((5, 7), (5, 7), (1, 1), (1, 1), (False, False)),
    ((7, 9), (3, 5), (1, 1), (1, 1), (False, False)),
    ((7, 9), (4, 2), (1, 1), (1, 1), (False, False)),
    ((8, 7), (3, 3), (2, 2), (1, 1), (False, False)),
    ((9, 11), (2, 3), (4, 3), (1, 1), (False, False)),
    ((7, 8), (5, 4), (1, 2), (3, 4), (False, False)),
    ((7, 8), (7, 3), (1, 1), (1, 2), (False, True)),
    ((9, 6), (3, 3), (3, 1), (3, 1), (True, True)),
    ((3, 5, 4), (2, 3, 2), (1, 1, 2), (1, 2, 1), (False, False, True)),
    ((4, 3, 5), (3, 3, 2), (1, 1, 2), (2, 1, 1), (False, False, False)),
]


@every_path
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_equals_loop(attend, case, with_bias):
    lengths, kernel, dilation, stride, is_causal = case
    shape = (2, *lengths, 2, 3)
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    if with_bias:
        leaves.append(torch.randn(2, *(2 * k - 1 for k in kernel), dtype=torch.float64, requires_grad=True))
    bias = leaves[3] if with_bias else None
    options = {"dilation": dilation, "stride": stride, "is_causal": is_causal, "bias": bias}
    got = attend(*leaves[:3], kernel, **options, return_lse=True)
    wanted = loop_oracle(*leaves[:3], kernel, dilation, stride, is_causal, bias)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(attend(*leaves[:3], kernel, **options), wanted[0], rtol=1e-9, atol=1e-10)
    cotangents = tuple(torch.randn_like(t) for t in wanted)
    for ours, theirs in zip(
        torch.autograd.grad(got, leaves, cotangents), torch.autograd.grad(wanted, leaves, cotangents)
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@every_path
def test_scale_replaces_the_default(attend):
    q, k, v = torch.randn(3, 1, 5, 6, 2, 4, dtype=torch.float64)
    wanted, _ = loop_oracle(q, k, v, (3, 3), (1, 1), (1, 1), (False, False), scale=0.3)
    torch.testing.assert_close(attend(q, k, v, 3, scale=0.3), wanted)


@every_path
@pytest.mark.parametrize("options", [{}, {"dilation": 2, "is_causal": (True, False)}, {"stride": 2}])
@pytest.mark.parametrize("return_lse", [False, True])
def test_gradcheck(attend, options, return_lse):
    leaves = [torch.randn(1, 4, 5, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    leaves.append(torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True))

    def op(q, k, v, bias):
        return attend(q, k, v, 2, bias=bias, return_lse=return_lse, **options)

    assert torch.autograd.gradcheck(op, leaves, fast_mode=True)


def test_reference_is_differentiable_twice():
    leaves = [torch.randn(1, 3, 4, 1, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    leaves.append(torch.randn(1, 5, 5, dtype=torch.float64, requires_grad=True))

    def op(q, k, v, bias):
        return neighborhood_attention(q, k, v, 3, bias=bias, return_lse=True, backend="reference")

    assert torch.autograd.gradgradcheck(op, leaves, fast_mode=True)


@every_path
def test_kernel_over_the_map_is_full_attention(attend):
    q, k, v = torch.randn(3, 2, 5, 7, 2, 4, dtype=torch.float64)
    flat = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))
    full = torch.nn.functional.scaled_dot_product_attention(*flat)
    torch.testing.assert_close(attend(q, k, v, (5, 7)), full.transpose(1, 2).view_as(q))


@every_path
@pytest.mark.parametrize("options", [{}, {"dilation": 2}, {"stride": 3}])
def test_every_query_has_exactly_the_kernels_number_of_keys(attend, options):
    height, width = 8, 9
    zeros = torch.zeros(1, height, width, 1, height * width, dtype=torch.float64)
    positions = torch.eye(height * width, dtype=torch.float64).view(zeros.shape)
    weights = attend(zeros, zeros, positions, (3, 4), **options).view(height * width, height * width)
    assert ((weights > 0).sum(1) == 12).all()
    torch.testing.assert_close(weights[weights > 0], torch.full((12 * 72,), 1 / 12, dtype=torch.float64))


@every_path
def test_dilation_is_the_undilated_op_on_every_residue_class(attend):
    q, k, v = torch.randn(3, 2, 8, 11, 2, 4, dtype=torch.float64)
    dilated = attend(q, k, v, 3, dilation=(2, 3))
    for y, x in itertools.product(range(2), range(3)):
        part = (slice(None), slice(y, None, 2), slice(x, None, 3))
        torch.testing.assert_close(dilated[part], attend(q[part], k[part], v[part], 3))


@every_path
def test_translation_moves_the_interior(attend):
    q, k, v = torch.randn(3, 1, 10, 11, 2, 4, dtype=torch.float64)
    out = attend(q, k, v, 5)
    moved = attend(*(t.roll((1, 2), (1, 2)) for t in (q, k, v)), 5)
    torch.testing.assert_close(moved[:, 3:8, 4:9], out[:, 2:7, 2:7])


@every_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_near_float64(attend, dtype):
    q, k, v = torch.randn(3, 2, 9, 7, 2, 8, dtype=dtype)
    bias = torch.randn(2, 9, 9)
    out = attend(q, k, v, 5, bias=bias)
    assert out.dtype == dtype
    exact = neighborhood_attention(q.double(), k.double(), v.double(), 5, bias=bias.double(), backend="reference")
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)


@every_path
@pytest.mark.parametrize("options", [{}, {"dilation": 2, "stride": 2, "is_causal": (True, False)}])
def test_compile_fullgraph(attend, options):
    torch._dynamo.reset()
    leaves = [torch.randn(1, 8, 9, 2, 4, requires_grad=True) for _ in range(3)]

    def op(q, k, v):
        return attend(q, k, v, 3, **options)

    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    got, wanted = compiled(*leaves), op(*leaves)
    torch.testing.assert_close(got, wanted)
    for ours, theirs in zip(
        torch.autograd.grad(got.square().sum(), leaves), torch.autograd.grad(wanted.square().sum(), leaves)
    ):
        torch.testing.assert_close(ours, theirs)


@every_path
def test_first_call_in_inference_mode_leaves_training_possible(attend):
    q, k, v = torch.randn(3, 1, 6, 13, 2, 4)
    with torch.inference_mode():
        attend(q, k, v, (3, 5), stride=2)
    q.requires_grad_()
    attend(q, k, v, (3, 5), stride=2).sum().backward()
    assert q.grad.isfinite().all()


@every_path
def test_fake_tensors_do_not_leak_into_later_calls(attend):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert attend(*(torch.randn(1, 7, 11, 2, 4) for _ in range(3)), 3).shape == (1, 7, 11, 2, 4)
    assert attend(*(torch.randn(1, 7, 11, 2, 4) for _ in range(3)), 3).isfinite().all()


def test_tiled_is_dense_on_small_maps_and_tiles_on_large_ones():
    def prefers(length, kernel, dilation=1):
        return tiled.prefers_dense((tiled.Axis(length, kernel, dilation),) * 2)

    assert prefers(8, 7)
    assert prefers(16, 7)
    assert not prefers(56, 7)
    assert not prefers(32, 7, 4)
