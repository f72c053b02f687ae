"""Neighborhood attention: every token attends to the kernel_size x kernel_size tokens nearest to it.

Papers: Neighborhood Attention Transformer (Hassani et al., 2022), arXiv:2204.07143; Dilated Neighborhood Attention
    Transformer, arXiv:2209.15001; strides and causal axes: Generalized Neighborhood Attention, arXiv:2504.16922
    out_i = softmax_j(q_i . k_j / sqrt(d) + bias[(j - i) / dilation]) v_j      j in the window of i
Cost: O(N dim^2 + N kernel_size^2 dim) time; memory is a matter of the op's backend.
The border rule (a window is shifted to stay in the map, never shrunk) and the backends are those of
vantage.ops.neighborhood_attention. `attn_drop` must stay 0: fused backends do not drop weights.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vantage.attention.base import note, pair
from vantage.attention.multihead import MultiHead, scores
from vantage.ops.neighborhood_attention import BACKENDS, neighborhood_attention, per_axis, resolve_backend
from vantage.ops.neighborhood_attention.tiled import biased, dense_mask, dense_offsets
from vantage.ops.neighborhood_attention.windows import Axis, count_pairs
from vantage.position.base import Position
from vantage.position.grid import box_offsets, pixel_coords


class Neighborhood(MultiHead):
    cost = "8*N*dim^2 + 4*N*kernel_size^2*dim"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        kernel_size: int | Sequence[int] = 7,
        dilation: int | Sequence[int] | Literal["span"] = 1,
        stride: int | Sequence[int] = 1,
        is_causal: bool | Sequence[bool] = False,
        clamp: bool = True,
        backend: Literal["auto", "native", "triton", "cuda", "flex", "tiled", "reference"] = "auto",
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        position: Position | None = None,
    ):
        """dilation: steps between keys, or "span": per axis the largest with kernel_size * dilation <= length, as
        DiNAT's global layers. clamp: what does not fit the map is reduced per axis, the dilation first, then kernel
        and stride; False raises instead. backend: as the op takes it."""
        super().__init__(dim, num_heads, qkv_bias=qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop, position=position)
        if attn_drop:
            raise ValueError(f"neighborhood: attn_drop={attn_drop} is not available; use attention.proj_drop instead")
        if isinstance(dilation, str) and dilation != "span":
            raise ValueError(f"attention.dilation={dilation!r}; use span, an integer or two of them (y, x)")
        if backend not in ("auto", *BACKENDS):
            raise ValueError(f"attention.backend={backend!r}; use auto, {', '.join(BACKENDS)}")
        self.kernel_size = pair(kernel_size, "attention.kernel_size")
        self.dilation = dilation if dilation == "span" else pair(dilation, "attention.dilation")
        self.stride = pair(stride, "attention.stride")
        if any(stride > kernel for stride, kernel in zip(self.stride, self.kernel_size)):
            raise ValueError(
                f"neighborhood: stride {self.stride} exceeds kernel_size {self.kernel_size}; queries of a group would "
                "lie outside of their window, use a smaller attention.stride"
            )
        self.is_causal = per_axis(is_causal, 2, "is_causal", bool)
        self.clamp = clamp
        self.backend = backend
        self.resolved_backend = None  # what the last call ran on, for extra_repr
        if position is not None:
            position.fit(self.kernel_size)

    def axes(self, height: int, width: int) -> tuple[Axis, Axis]:
        """What each axis of a map of this size gets."""
        axes = []
        for number, length in enumerate((height, width)):
            kernel = min(self.kernel_size[number], length)
            widest = length // kernel
            dilation = widest if self.dilation == "span" else min(self.dilation[number], widest)
            stride = min(self.stride[number], kernel)
            axes.append(Axis(length, kernel, dilation, stride, self.is_causal[number]))
        kernel = tuple(axis.kernel for axis in axes)
        dilation = tuple(axis.dilation for axis in axes)
        if kernel != self.kernel_size or self.dilation not in ("span", dilation):
            self.report_clamp(height, width, kernel, dilation)
        return tuple(axes)

    def report_clamp(self, height: int, width: int, kernel: tuple[int, int], dilation: tuple[int, int]) -> None:
        asked = f"kernel_size {self.kernel_size} with dilation {self.dilation}"
        if not self.clamp:
            raise ValueError(
                f"neighborhood: {asked} does not fit the {height}x{width} map and attention.clamp is false; "
                f"kernel_size {kernel} with dilation {dilation} does, or use attention.clamp=true"
            )
        note(f"neighborhood: {asked} is clamped to {kernel} with {dilation} on the {height}x{width} map")

    def forward(self, x: Tensor) -> Tensor:
        axes = self.axes(*x.shape[1:3])
        q, k, v = self.split(x)
        if not torch.compiler.is_compiling():
            self.resolved_backend = resolve_backend(self.backend, q, axes)
        out = neighborhood_attention(
            q,
            k,
            v,
            tuple(axis.kernel for axis in axes),
            dilation=tuple(axis.dilation for axis in axes),
            stride=tuple(axis.stride for axis in axes),
            is_causal=self.is_causal,
            bias=self.bias(axes, q),
            backend=self.backend,
        )
        return self.proj_drop(self.proj(out.flatten(3)))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v (B, H, W, heads, head_dim), rotated by the position."""
        height, width = x.shape[1:3]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(3)
        if self.position is not None and self.position.hook == "rotate":
            coords = pixel_coords(height, width, x.device)
            q, k = self.position.rotate(*(t.flatten(1, 2).transpose(1, 2) for t in (q, k)), coords)
            q, k = (t.transpose(1, 2).unflatten(1, (height, width)) for t in (q, k))
        return q, k, v

    def bias(self, axes: tuple[Axis, Axis], q: Tensor) -> Tensor | None:
        """The position's table for the kernel in use, (heads, 2 kh - 1, 2 kw - 1); offsets count steps of dilation."""
        if self.position is None or self.position.hook != "bias":
            return None
        return self.position.bias(box_offsets(axes[0].kernel, axes[1].kernel, q.device), self.kernel_size)

    def attention_map(self, x: Tensor) -> Tensor:
        """(B, heads, N, N) softmax weights, zero outside of a token's window."""
        axes = self.axes(*x.shape[1:3])
        q, k, _ = (t.flatten(1, 2).transpose(1, 2) for t in self.split(x))
        logits = scores(q, k)
        mask = dense_mask(axes, q.device, logits.dtype)
        bias = self.bias(axes, q)
        if bias is not None:
            logits = logits + biased(None, bias.flatten(1), dense_offsets(axes, q.device), logits.dtype)
        return (logits if mask is None else logits + mask).softmax(-1)

    def pairs(self, height: int, width: int) -> int:
        return count_pairs(self.axes(height, width))

    def extra_repr(self) -> str:
        resolved = f" ({self.resolved_backend})" if self.backend == "auto" and self.resolved_backend else ""
        return (
            f"kernel_size={self.kernel_size}, dilation={self.dilation}, stride={self.stride}, "
            f"is_causal={self.is_causal}, backend={self.backend}{resolved}"
        )
