"""The shapes every backend is checked on, and the check: out, lse and all gradients against the float64 reference."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from vantage.ops.neighborhood_attention import neighborhood_attention, reference, resolve_backend
from vantage.ops.neighborhood_attention.windows import Axis

LAYOUTS = ("contiguous", "qkv", "heads_first", "channels_first", "sliced")


class Case(NamedTuple):
    """One call of the op; window parameters are per axis. layout: how q, k and v lie in memory."""

    lengths: tuple[int, ...]
    kernel: tuple[int, ...]
    dilation: tuple[int, ...]
    stride: tuple[int, ...]
    is_causal: tuple[bool, ...]
    head_dim: int = 8
    heads: int = 2
    batch: int = 2
    with_bias: bool = False
    layout: str = "contiguous"

    @property
    def axes(self) -> tuple[Axis, ...]:
        return tuple(map(Axis, self.lengths, self.kernel, self.dilation, self.stride, self.is_causal))

    @property
    def tokens(self) -> int:
        return int(torch.Size(self.lengths).numel())

    @property
    def window(self) -> dict:
        """The keywords of the public function."""
        return {"dilation": self.dilation, "stride": self.stride, "is_causal": self.is_causal}

    def __str__(self) -> str:
        def word(letter: str, values: tuple) -> str:
            return letter + "x".join(str(int(value)) for value in values)

        parts = [word("", self.lengths), word("k", self.kernel)]
        for letter, values, usual in (("d", self.dilation, 1), ("s", self.stride, 1), ("causal", self.is_causal, 0)):
            if any(value != usual for value in values):
                parts.append(word(letter, values))
        parts.append(f"{self.batch}b{self.heads}h{self.head_dim}")
        parts += ["bias"] * self.with_bias + [self.layout] * (self.layout != "contiguous")
        return "-".join(parts)


def case(lengths, kernel, dilation=1, stride=1, is_causal=False, **options) -> Case:
    """A Case from values for all axes or one per axis."""
    lengths = lengths if isinstance(lengths, tuple) else (lengths,)
    window = (
        values if isinstance(values, tuple) else (values,) * len(lengths)
        for values in (kernel, dilation, stride, is_causal)
    )
    return Case(lengths, *window, **options)


CASES = [
    # one axis
    case(1, 1),
    case(37, 7, with_bias=True),
    case(11, 4, dilation=2, stride=3, is_causal=True, with_bias=True),
    case(13, 3, dilation=4, stride=2),
    case(70, 64, is_causal=True),
    # odd and even kernels, rectangular ones, kernel 1
    case((7, 9), (3, 5), with_bias=True),
    case((7, 9), (4, 2), with_bias=True),
    case((6, 11), 6),
    case((9, 8), 2, with_bias=True),
    case((4, 5), 1, with_bias=True),
    case((6, 5), 1, dilation=(4, 5)),
    case((5, 9), (1, 4)),
    # H or W equal to the kernel, both, a map of one row or token
    case((7, 12), 7, with_bias=True),
    case((9, 5), 5),
    case((5, 7), (5, 7), with_bias=True),
    case((8, 6), (8, 6)),
    case((1, 5), (1, 3), with_bias=True),
    case((6, 1), (4, 1)),
    case((1, 1), 1),
    # dilation with uneven residue classes
    case((8, 7), 3, dilation=2, with_bias=True),
    case((9, 11), (2, 3), dilation=(4, 3), with_bias=True),
    case((10, 13), (4, 3), dilation=(2, 4)),
    case((6, 12), 3, dilation=(2, 4)),
    # stride, causal axes
    case((7, 8), (5, 4), dilation=(1, 2), stride=(3, 4), with_bias=True),
    case((7, 8), (7, 3), stride=(1, 2), is_causal=(False, True)),
    case((8, 9), 4, stride=4, is_causal=(True, False), with_bias=True),
    case((9, 6), 3, dilation=(3, 1), stride=(3, 1), is_causal=True, with_bias=True),
    case((10, 9), 5, is_causal=True),
    # three axes
    case((3, 5, 4), (2, 3, 2), dilation=(1, 1, 2), stride=(1, 2, 1), is_causal=(False, False, True), with_bias=True),
    case((4, 3, 5), (3, 3, 2), dilation=(1, 1, 2), stride=(2, 1, 1)),
    case((5, 6, 7), 3, with_bias=True, batch=1),
    # head dimensions, batch 1, one head
    *(case((6, 9), 3, head_dim=dim, batch=1, heads=3, with_bias=dim in (12, 64)) for dim in (12, 20, 32, 64, 80, 128)),
    case((9, 10), 5, head_dim=1, heads=1),
    case((9, 10), 5, head_dim=3, heads=1, batch=3, with_bias=True),
    # memory layouts
    *(case((6, 7), 3, head_dim=16, heads=3, with_bias=True, layout=layout) for layout in LAYOUTS[1:]),
    case((9, 10), 4, dilation=2, head_dim=12, batch=1, layout="qkv"),
    # several tiles of any backend, ragged
    case((19, 37), 7, batch=1, with_bias=True),
    case((35, 18), 13, batch=1, head_dim=32, with_bias=True),
    case((33, 21), 7, dilation=(4, 3), batch=1, head_dim=20),
    case((34, 35), 6, stride=(2, 5), batch=1, heads=1, layout="qkv"),
    case((40, 17), 5, dilation=(3, 1), is_causal=(False, True), batch=1, heads=1),
    case((9, 10, 19), (3, 4, 5), batch=1, heads=1),
]
SMALL_CASES = [small for small in CASES if small.tokens <= 130]  # for interpreters


class Expected(NamedTuple):
    """In float64: results, and the gradients of (out * grad_out).sum() + (lse * grad_lse).sum()."""

    out: Tensor
    lse: Tensor
    grads: dict[str, Tensor]  # of q, k, v and bias


def inputs(case: Case, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
    """q, k, v, bias (where the case has one, float32 or float64), grad_out and grad_lse, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    shape = (case.batch, *case.lengths, case.heads, case.head_dim)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=torch.float64)

    made = dict(zip("qkv", lay_out(normal(3, *shape).to(dtype).to(device), case.layout)))
    made["grad_out"] = normal(*shape).to(dtype).to(device)
    made["grad_lse"] = normal(*shape[:-1]).to(torch.promote_types(dtype, torch.float32)).to(device)
    if case.with_bias:
        bias = normal(case.heads, *(2 * kernel - 1 for kernel in case.kernel))
        made["bias"] = bias.to(torch.promote_types(dtype, torch.float32)).to(device)
    return made


def lay_out(qkv: Tensor, layout: str) -> list[Tensor]:
    """Three views (B, *lengths, heads, d) of storage laid out as what usually comes before the op leaves it."""
    if layout == "contiguous":
        return list(qkv)
    if layout == "qkv":  # one linear layer: (B, *lengths, 3, heads, d)
        return list(qkv.movedim(0, -3).contiguous().movedim(-3, 0))
    if layout == "heads_first":  # after a rotation: (B, heads, *lengths, d)
        return [t.movedim(-2, 1).contiguous().movedim(1, -2) for t in qkv]
    if layout == "channels_first":  # a 1x1 convolution: (B, heads * d, *lengths)
        return [t.movedim((-2, -1), (1, 2)).contiguous().movedim((1, 2), (-2, -1)) for t in qkv]
    room = torch.full([size + 2 for size in qkv.shape], float("nan"), dtype=qkv.dtype, device=qkv.device)
    inner = room[tuple(slice(1, -1) for _ in qkv.shape)]  # sliced: NaN around every row
    inner.copy_(qkv)
    return list(inner)


@functools.cache
def expected(case: Case, dtype: torch.dtype) -> Expected:
    """Of the inputs as rounded to dtype."""
    made = {name: tensor.double().contiguous() for name, tensor in inputs(case, dtype).items()}
    leaves = {name: made[name].requires_grad_() for name in ("q", "k", "v", "bias") if name in made}
    out, lse = reference.attend(
        *map(leaves.get, "qkv"), case.axes, case.head_dim**-0.5, leaves.get("bias"), return_lse=True
    )
    loss = (out * made["grad_out"]).sum() + (lse * made["grad_lse"]).sum()
    return Expected(out.detach(), lse.detach(), dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())))))


def tolerance(dtype: torch.dtype) -> float:
    """Of the largest value of a result, in float32 64 roundings and in half precision 4."""
    return torch.finfo(dtype).eps * (64 if dtype in (torch.float32, torch.float64) else 4)


def assert_near(name: str, got: Tensor, wanted: Tensor, relative: float) -> None:
    assert got.shape == wanted.shape, f"{name}: {tuple(got.shape)} instead of {tuple(wanted.shape)}"
    error = (got.detach().double().cpu() - wanted).abs().max().item()  # a NaN is an error too
    limit = relative * max(1.0, wanted.abs().max().item())
    assert error <= limit, f"{name} is off by {error:.3g}, at most {limit:.3g} is rounding"


def check(
    attend: Callable,
    case: Case,
    dtype: torch.dtype,
    device: str = "cpu",
    relative: float | None = None,
    gradients: bool = True,
) -> None:
    """attend(q, k, v, axes, scale, bias) -> (out, lse), as backend modules have it, against the float64 reference."""
    relative = tolerance(dtype) if relative is None else relative
    wanted = expected(case, dtype)
    made = inputs(case, dtype, device)
    leaves = {name: made[name].requires_grad_(gradients) for name in wanted.grads}
    out, lse = attend(*map(leaves.get, "qkv"), case.axes, case.head_dim**-0.5, leaves.get("bias"))
    assert out.dtype == dtype
    assert lse.dtype == torch.promote_types(dtype, torch.float32)
    assert_near("out", out, wanted.out, relative)
    assert_near("lse", lse, wanted.lse, relative)
    if not gradients:
        return
    grads = torch.autograd.grad((out, lse), list(leaves.values()), (made["grad_out"], made["grad_lse"]))
    for (name, leaf), grad in zip(leaves.items(), grads):
        assert grad.dtype == leaf.dtype
        assert_near(f"gradient of {name}", grad, wanted.grads[name], relative)


def through_op(backend: str) -> Callable:
    """The public function with the signature of a backend module's attend; skips the test where it cannot run."""

    def attend(q, k, v, axes, scale, bias):
        try:
            resolve_backend(backend, q, axes)
        except RuntimeError as missing:
            pytest.skip(str(missing))
        _, kernel, dilation, stride, is_causal = zip(*axes)
        window = {"dilation": dilation, "stride": stride, "is_causal": is_causal}
        return neighborhood_attention(
            q, k, v, kernel, **window, scale=scale, bias=bias, return_lse=True, backend=backend
        )

    return attend
