"""The table of mechanisms: what tests/attention/test_suite.py holds each of them to. A new mechanism adds a row."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .dense_reference import randomised
from .references import (
    aff,
    agent,
    axial,
    circular_conv,
    efficient,
    focused_linear,
    fourier_karat,
    gpsa,
    grid,
    halo,
    hilo,
    inline,
    lightnet,
    lkca,
    lrsa,
    minimal_attention,
    moh,
    multipole,
    nala,
    neighborhood,
    neural_attention,
    padre,
    rala,
    rvsa,
    rwin,
    softmax,
    super_attention,
    token_aggregation,
    window,
)


def nothing(module: nn.Module, height: int, width: int) -> int:
    return 0


def windows_on_the_move(module: nn.Module) -> nn.Module:
    """By a pixel or two, not by the length of the map."""
    module = randomised(module)
    nn.init.normal_(module.sampling.weight, std=0.2)
    return module


def unequal_centres(module: nn.Module) -> nn.Module:
    """Averages of unit vectors are shorter, by more or less."""
    module = randomised(module)
    module.means.mul_(torch.rand(len(module.means), 1))
    return module


def pairs_that_differ(module: nn.Module) -> nn.Module:
    """A network of few units is dead for all pairs where their weights are negative, and nearly so where small."""
    module = randomised(module)
    module.linear2.weight.data.abs_()
    module.linear3.weight.data.sign_().mul_(3)
    return module


@dataclass(frozen=True)
class Row:
    """What a mechanism is compared with.

    reference(module, x): module(x) by the equations, see references/.
    law: how flops(height, width) grows in the tokens: "N", "N log N", "N^1.5" or "N^2".
    variants: keywords that are compared with the reference beside the defaults.
    mutants: (old, new) edits of the module's source, each of which must make the comparison with the reference fail;
        (old, new, keywords) where only a variant shows it.
    uncounted(module, height, width): the part of flops() that torch's counter does not see.
    counted: keywords on top of every variant's under which the counter is read: flops() counts the pairs that attend,
        and where a map is padded or masked more are computed.
    positioned: keywords that every position is compared with.
    linear_memory: whether peak live bytes grow no faster than the tokens; None: where the law is "N" or "N log N".
    prepare(module): the module with the parameters it is compared with.
    """

    reference: Callable[[nn.Module, Tensor], Tensor]
    law: str
    variants: tuple[dict, ...] = ()
    mutants: tuple[tuple, ...] = ()
    uncounted: Callable[[nn.Module, int, int], int] = nothing
    linear_memory: bool | None = None
    prepare: Callable[[nn.Module], nn.Module] = randomised
    counted: dict = field(default_factory=dict)
    positioned: tuple[dict, ...] = ({},)


TABLE = {
    "aff": Row(
        aff.reference,
        "N log N",
        variants=(
            {"qkv_bias": False, "sparsity_threshold": 0.5},
            {"num_blocks": 6, "activation": "gelu"},
            {"num_blocks": 1, "activation": "silu", "sparsity_threshold": 0.0},
        ),
        mutants=(
            (".mT @ x", ".mH @ x"),
            ("self.sparsity_threshold)", "2 * self.sparsity_threshold)", {"sparsity_threshold": 0.5}),
            ('norm="ortho") + signal', 'norm="ortho")'),
            ('rfft2(signal, norm="ortho")', "rfft2(signal)"),
            ("self.mask(spectrum) * spectrum", "self.mask(spectrum)"),
        ),
        uncounted=aff.transforms_and_complex_products,
    ),
    "agent": Row(
        agent.reference,
        "N",
        variants=(
            {"agent_num": 4, "table_size": 6},
            {"agent_num": 9, "table_size": (3, 8), "qkv_bias": False},
            {"agent_num": 1, "table_size": 1},
        ),
        mutants=(
            ("self.head_dim**-0.5", "self.dim**-0.5"),
            ("self.proj(out + local)", "self.proj(out)"),
            ("self.gather_bias(height, width)).softmax(dim=-1)", "self.gather_bias(height, width)).softmax(dim=-2)"),
            ('self.aw_bias[0, :, :, 0], size=width, mode="linear"', "self.aw_bias[0, :, :, 0], size=width"),
            ("columns[..., None, :])).permute", "columns.flip(-1)[..., None, :])).permute"),
        ),
    ),
    "axial": Row(
        axial.reference,
        "N^1.5",
        variants=(
            {"axis": "row"},
            {"axis": "column"},
            {"is_causal": True},
            {"axis": "column", "is_causal": True, "qkv_bias": False},
        ),
        positioned=({}, {"axis": "row", "is_causal": True}, {"axis": "column"}),
        mutants=(
            ("triu(1)", "triu(2)", {"is_causal": True}),
            ("triu(1)", "tril(-1)", {"is_causal": True}),
            ('"both": ("row", "column")', '"both": ("column", "row")'),
            ("bias(offsets, tuple(lengths))", "bias(offsets, (max(lengths),) * 2)"),
            ('length) if axis == "row"', 'length) if axis == "column"'),
        ),
        counted={"is_causal": False},
    ),
    "circular_conv": Row(
        circular_conv.reference,
        "N log N",
        variants=({"qkv_bias": False}, {"variant": "cat_avg_key"}, {"variant": "cat_avg_key", "qkv_bias": False}),
        mutants=(
            ("rfft(weights).conj()", "rfft(weights)"),
            (".softmax(1)", ".softmax(2)"),
            ("self.head_dim**-0.5", "self.dim**-0.5", {"variant": "cat_avg_key"}),
            ("self.qkv.bias.chunk(3)[1]", "self.qkv.bias.chunk(3)[0]", {"variant": "cat_avg_key"}),
            ("tokens.mean(1)", "tokens.sum(1)", {"variant": "cat_avg_key"}),
        ),
        uncounted=circular_conv.transforms,
    ),
    "efficient": Row(
        efficient.reference,
        "N",
        variants=({"qkv_bias": False}, {"normalisation": "scaling"}),
        mutants=(
            ("q.softmax(dim=-1,", "q.softmax(dim=-2,"),
            ("k.softmax(dim=-2,", "k.softmax(dim=-1,"),
            ("k * k.shape[-2] ** -0.5", "k * k.shape[-1] ** -0.5", {"normalisation": "scaling"}),
            ("q * q.shape[-2] ** -0.5", "q", {"normalisation": "scaling"}),
            ("k.mT @ v)  #", "v.mT @ k)  #"),
        ),
    ),
    "focused_linear": Row(
        focused_linear.reference,
        "N",
        variants=({"focusing_factor": 4.5, "kernel_size": 3, "table_size": (3, 8)}, {"qkv_bias": False}),
        mutants=(("norm / powered_norm", "powered_norm / norm"), ("1 / F.softplus", "2 / F.softplus")),
    ),
    "fourier_karat": Row(
        fourier_karat.reference,
        "N^2",
        variants=(
            {"rank": 5, "grid_size": 1, "table_size": (5, 7)},
            {"rank": 2, "grid_size": 4, "table_size": (3, 8), "qkv_bias": False},
            {"rank": 3, "grid_size": 2, "table_size": 3, "l1_projection": True},
        ),
        mutants=(
            ("cos * first_cos - sin * first_sin", "cos * first_cos + sin * first_sin"),
            ("tables[step + self.grid_size]", "tables[-1 - step]"),
            ("(rows * columns / (height * width))", "(height * width / (rows * columns))"),
            ("ranked.cumsum(-1) - 1)", "ranked.cumsum(-1) - 2)", {"l1_projection": True}),
            ("return scores(q, k)", "return 2 * scores(q, k)"),
            (
                "resizing(rows, height, table.device, table.dtype) @ table",
                "resizing(rows, height, table.device, table.dtype).flip(0) @ table",
            ),
        ),
    ),
    "gpsa": Row(
        gpsa.reference,
        "N^2",
        variants=({"use_local_init": False, "qkv_bias": False},),
        mutants=(
            ("across, down, squared =", "down, across, squared ="),
            ("place - place[:, None]", "place[:, None] - place"),
            ("* offset.square()", "* offset.abs()"),
            (
                "by_place.to(by_content.dtype), self.gate().to(by_content.dtype))\n        return self.proj_drop",
                "by_place.to(by_content.dtype), 1 - self.gate().to(by_content.dtype))\n        return self.proj_drop",
            ),
            ("self.gating_param)).sigmoid()", "self.gating_param)).sigmoid().square()"),
        ),
    ),
    "grid": Row(
        grid.reference,
        "N",
        variants=({"grid_size": 2}, {"grid_size": (3, 2)}, {"grid_size": (4, 1), "qkv_bias": False}),
        positioned=({}, {"grid_size": (3, 2)}),
        mutants=(
            ("tuple(-(-length // cells) for", "tuple(max(length // cells, 1) for"),
            ("view(cells, step).mT", "view(step, cells)", {"grid_size": 2}),
            ("cells, self.grid_size, step=step", "cells, self.grid_size, step=(1, 1)"),
            ("cells, self.grid_size, step=step", "cells, cells, step=step"),
        ),
        counted={"grid_size": 4},
    ),
    "halo": Row(
        halo.reference,
        "N",
        variants=(
            {"block_size": 2, "halo_size": 1},
            {"block_size": (3, 2), "halo_size": (1, 3), "mask_padding": False},
            {"block_size": 4, "halo_size": (0, 2), "scale_pos": True, "qkv_bias": False},
            {"block_size": 3, "scale_pos": True, "mask_padding": False},
        ),
        mutants=(
            (".flip(0)", ""),
            ("places >= axis.length", "places > axis.length"),
            ("(-(-length // block) - 1) * block", "-(-length // block) * block", {"mask_padding": False}),
            ("self.head_dim**-0.5 if self.scale_pos", "self.dim**-0.5 if self.scale_pos", {"scale_pos": True}),
            ("surplus = len(table) // 2 + 1 - reach", "surplus = 0"),
            ("self.height_rel, rows, scale", "self.width_rel, rows, scale", {"block_size": 3}),
            ("k, v = windows", "v, k = windows"),
            ("columns.halo, borders[1]", "borders[1], columns.halo", {"block_size": 4}),
        ),
    ),
    "hilo": Row(
        hilo.reference,
        "N^2",
        variants=(
            {"alpha": 0.5, "window_size": 3},
            {"alpha": 0.0, "window_size": 4},
            {"alpha": 1.0, "window_size": 4},
            {"alpha": 0.5, "window_size": 1},
            {"alpha": 0.25, "window_size": 20, "qkv_bias": False},
        ),
        mutants=(
            ("self.head_dim)\n        k, v = kv", "self.head_dim)\n        v, k = kv"),
            ("self.attend(*qkv.permute(2, 0, 3, 1, 4))", "self.attend(*qkv.permute(2, 0, 3, 1, 4).flip(0))"),
            ("torch.cat(branches, dim=-1)", "torch.cat(branches[::-1], dim=-1)"),
            ("ceil_mode=True", "ceil_mode=False"),
        ),
    ),
    "inline": Row(
        inline.reference,
        "N",
        variants=(
            {"kernel": "relu"},
            {"kernel": "leakyrelu", "qkv_bias": False},
            {"kernel": "exp"},
            {"local_residual": False},
        ),
        mutants=(
            ("self.head_dim**-0.5 / k", "self.dim**-0.5 / k"),
            ("-scale * k.mean(dim=-2,", "-scale * k.mean(dim=-1,"),
            ("@ v) + mean", "@ v) - mean"),
            ("q, k = feature(q), feature(k)", "q = feature(q)", {"kernel": "relu"}),
            ("F.leaky_relu,", "F.relu,", {"kernel": "leakyrelu"}),
            ("(0.2 *", "(0.25 *", {"kernel": "exp"}),
            ("x.mean(dim=(1, 2))", "x.amax(dim=(1, 2))"),
            ("reshape(batch * dim, 1, 3, 3)", "reshape(batch * dim, 1, 3, 3).mT"),
        ),
    ),
    "lightnet": Row(
        lightnet.reference,
        "N",
        variants=({"qkv_bias": False}, {"gate_activation": "silu", "gate_rank": 5}),
        mutants=(
            ("k.softmax(dim=-2,", "k.softmax(dim=-1,"),
            ("q, k = F.silu(q),", "q, k = F.relu(q),"),
            ("eps=1e-6", "eps=1e-4"),
            ('"silu": F.silu', '"silu": F.gelu', {"gate_activation": "silu"}),
            ("(self.gate(x))", "(self.gate[1](self.gate[0](x).relu()))"),
            ("self.norm.weight.to(full), self", "None, self"),
            ("k, (height, width))", "k, (width, height))"),
        ),
    ),
    "lkca": Row(
        lkca.reference,
        "N log N",
        variants=(
            {"table_size": (5, 7), "sharing": "channel", "qkv_bias": False},
            {"table_size": (3, 1), "sharing": "head"},
            {"kernel_size": 11},
            {"kernel_size": 5, "sharing": "head"},
            {"kernel_size": 3, "sharing": "channel"},
        ),
        mutants=(
            (".flip(1, 2)", ""),
            ("slice(height - 1, 2 * height - 1)", "slice(height, 2 * height)"),
            ("/ max(stretch, 1)", "/ 1", {"table_size": 3}),
            ("shares / shares.sum(0)", "shares", {"table_size": 3}),
            ("self.kernel[:, None].expand", "self.kernel.mT[:, None].expand", {"kernel_size": 5}),
        ),
        uncounted=lkca.transforms,
    ),
    "lrsa": Row(
        lrsa.reference,
        "N",
        variants=(
            {"window_size": 4},
            {"window_size": (5, 3), "overlap": 1},
            {"window_size": (3, 2), "overlap": 5},
            {"window_size": 4, "overlap": 3, "qk_dim": 8, "qkv_bias": False},
        ),
        mutants=(
            ("max(size - self.overlap, 1)", "max(size - self.overlap - 1, 1)", {"window_size": 4}),
            ("[*range(0, length - size, step), length - size]", "[*range(0, length, step)][:1]", {"window_size": 4}),
            ("/ shared.to(out.dtype)", "/ shared.to(out.dtype).sqrt()", {"window_size": 4}),
            ("by_rows[:, None] * by_columns", "by_rows[:, None].maximum(by_columns)", {"window_size": 3}),
        ),
    ),
    "minimal_attention": Row(
        minimal_attention.reference,
        "N^2",
        variants=(
            {"qk_merge": "full"},
            {"qk_merge": "triangular", "qkv_bias": False},
            {"qk_merge": "none", "o_identity": True},
            {"v_identity": True},
            {"qk_merge": "full", "v_identity": True, "o_identity": True},
            {"qk_merge": "triangular", "v_identity": True},
        ),
        positioned=({}, {"qk_merge": "none", "v_identity": True}),
        mutants=(
            ("scale = self.head_dim**-0.5", "scale = self.dim**-0.5"),
            ("parts[0], parts[-1]", "parts[0], parts[0]", {"qk_merge": "none"}),
            ("k = tokens[:, None]", "k = q[:, :1]", {"qk_merge": "full"}),
            ("self.dim).mT.flatten(0, 1)", "self.dim).flatten(0, 1)", {"qk_merge": "triangular"}),
            ("row * size + column", "column * size + row", {"qk_merge": "triangular"}),
            (".mean(1).to(v.dtype)", ".sum(1).to(v.dtype)", {"v_identity": True}),
        ),
    ),
    "moh": Row(
        moh.reference,
        "N^2",
        variants=(
            {"shared_heads": 0, "qkv_bias": False},
            {"shared_heads": 2},
            {"shared_heads": 2, "head_share": 1.0},
            {"shared_heads": 4},
        ),
        positioned=({}, {"shared_heads": 2, "head_share": 1.0}),
        mutants=(
            ("2 * kinds.softmax(-1)", "kinds.softmax(-1)"),
            ("self.kept_heads * largest.softmax(-1)", "largest.softmax(-1)"),
            ("logits.topk(self.kept_heads, dim=-1)", "logits.topk(self.routed_heads, dim=-1)"),
            ("own * balance[..., 1:]", "own * balance[..., :1]"),
            ("self.shared_heads * shared.softmax(-1)", "shared.softmax(-1)", {"shared_heads": 2}),
            ("torch.cat(parts, dim=-1)", "torch.cat(parts[::-1], dim=-1)"),
        ),
    ),
    "multipole": Row(
        multipole.reference,
        "N",
        variants=(
            {"window_size": 2},
            {"window_size": 2, "levels": 2, "down": "avg_pool"},
            {"window_size": (2, 3), "down": "avg_pool", "up": "nearest", "norm": False},
            {"window_size": 3, "up": "nearest", "qkv_bias": False},
            {"levels": 1},
        ),
        positioned=({}, {"window_size": (2, 3)}),
        mutants=(
            ("out, 1 / step)", "out, 1.0)", {"window_size": 2}),
            ("self.qkv(self.norm(x))", "self.qkv(x)"),
            ("return out * real_share(", "return out + 0 * real_share("),
            ("cells.flatten(3)", "cells.transpose(3, 4).flatten(3)"),
            ("(coarse).unflatten(-1, (2, 2, -1))", "(coarse).unflatten(-1, (2, 2, -1)).transpose(3, 4)"),
            ("self.window_size, index=index", "size, index=index"),
            ("len(sizes) != self.levels", "True", {"window_size": 2, "levels": 2}),
            ("return pool(x, (2, 2))", "return x[:, ::2, ::2]", {"down": "avg_pool"}),
        ),
        counted={"window_size": 2, "levels": 2},
    ),
    "nala": Row(
        nala.reference,
        "N",
        variants=({"qkv_bias": False}, {"kernel_size": 3}),
        mutants=(
            ("(0.5 + (norm", "(0.6 + (norm"),
            ("both_signs(k * k * k)", "both_signs(k * k.abs())"),
            ("torch.cat((x, -x)", "torch.cat((x, x)"),
            ("norm + EPSILON / largest", "norm"),
            ("EPSILON / largest**3", "EPSILON / largest"),
            ("(q, k, (height, width))", "(q, k, (width, height))"),
            ("F.silu(gate)", "F.gelu(gate)"),
            ("+ self.lepe(v)", "- self.lepe(v)"),
        ),
    ),
    "neighborhood": Row(
        neighborhood.reference,
        "N",
        variants=(
            {"kernel_size": 3, "dilation": 2},
            {"kernel_size": (2, 4)},
            {"kernel_size": 2, "dilation": "span"},
            {"kernel_size": (3, 1), "dilation": (1, 4), "qkv_bias": False},
            {"kernel_size": 3, "stride": 2},
            {"kernel_size": (4, 3), "stride": (1, 3), "is_causal": (False, True)},
            {"kernel_size": 3, "dilation": 2, "stride": 2, "is_causal": True},
        ),
        positioned=(
            {},
            {"kernel_size": (3, 2), "dilation": (2, 3)},
            {"kernel_size": 3, "stride": 2, "is_causal": (True, False)},
        ),
        mutants=(
            ("length // kernel", "max((length - 1) // kernel, 1)", {"kernel_size": 3, "dilation": "span"}),
            ("dilation=tuple(axis.dilation for", "dilation=tuple(1 for", {"kernel_size": 3, "dilation": 2}),
            ("stride=tuple(axis.stride for", "stride=tuple(1 for", {"kernel_size": 3, "stride": 2}),
            ("is_causal=self.is_causal,", "is_causal=False,", {"is_causal": True}),
            ("axes[1].kernel, q.device), self.kernel_size)", "axes[1].kernel, q.device), (7, 6))", {"kernel_size": 9}),
        ),
        counted={"backend": "reference", "is_causal": False},
    ),
    "neural_attention": Row(
        neural_attention.reference,
        "N^2",
        variants=({"projection_dim": 5}, {"projection_dim": 1, "qkv_bias": False}),
        mutants=(
            ("self.linear1.weight.chunk(2, dim=1)", "self.linear1.weight.chunk(2, dim=1)[::-1]"),
            ("self.linear1.bias if number == 0", "self.linear1.bias if number == 2"),
            ("both = first @ down.weight", "both = first.mT @ down.weight"),
            (".add_(bias2[:, None]).relu_()", ".relu_()"),
            ("largest + total.log()", "total.log()"),
            ("of_scores * (second > 0)", "of_scores"),
            (".to(q.dtype) - mean)", ".to(q.dtype))"),
        ),
        prepare=pairs_that_differ,
    ),
    "padre": Row(
        padre.reference,
        "N",
        variants=({"degree": 1}, {"degree": 3, "kernel_size": 3}, {"qkv_bias": False, "kernel_size": 5}),
        mutants=(
            ("torch.mul(step(power), factor)", "torch.add(step(power), factor)"),
            ("torch.mul(step(power), factor)", "torch.mul(power, factor)"),
            ("zip(self.steps, factors)", "zip(self.steps, reversed(factors))", {"degree": 3}),
        ),
    ),
    "rala": Row(
        rala.reference,
        "N",
        variants=({"qkv_bias": False}, {"kernel_size": 3}),
        mutants=(
            ("self.head_dim**-0.5 * k", "self.dim**-0.5 * k"),
            ("softmax(dim=-2)", "softmax(dim=-1)"),
            ("q.mean(dim=-2", "k.mean(dim=-2"),
            (".add_(1)", ".add_(1.01)"),
            ("q, k, size)", "q, k, size[::-1])"),
            ("self.lepe(v)) * gate", "self.lepe(v)) * gate.sigmoid()"),
            ("EPSILON = 1e-6", "EPSILON = 1e-5"),
        ),
    ),
    "rvsa": Row(
        rvsa.reference,
        "N",
        variants=(
            {"separate_kv": True},
            {"window_size": 4},
            {"window_size": (2, 3), "separate_kv": True, "qkv_bias": False},
        ),
        mutants=(
            ("((rows * size[0] - 1) / (2 * rows))", "((rows * size[0] - 1) / (2 * columns))", {"window_size": 4}),
            ("local_x * cos - local_y * sin", "local_x * cos + local_y * sin"),
            ("local_y = (local_y - (size[0] - 1) / 2)", "local_y = (local_y - size[0] / 2)"),
            ("(1 + scale_y)", "scale_y.exp()"),
            ("F.leaky_relu(", "F.relu("),
            ("align_corners=False", "align_corners=True"),
            ('padding_mode="border"', 'padding_mode="zeros"'),
            ("(y >= -0.5)", "(y >= 0)"),
            ("self.head_dim**-0.5", "self.dim**-0.5"),
            ("place[:, None] - place +", "place - place[:, None] +"),
        ),
        prepare=windows_on_the_move,
        counted={"window_size": 4},
    ),
    "rwin": Row(
        rwin.reference,
        "N",
        variants=(
            {"short_side": 2, "long_side": 3},
            {"short_side": 2, "long_side": 5, "shift": "half"},
            {"short_side": 2, "long_side": None},
            {"short_side": 5, "long_side": None, "shift": "half", "qkv_bias": False},
        ),
        mutants=(
            ("own // 2 if self.is_shifted", "own // 3 if self.is_shifted", {"shift": "half"}),
            ("sides.reverse()", "pass", {"long_side": None}),
            ("nn.LayerNorm(hidden)", "nn.LayerNorm(hidden, eps=1e-3)"),
            ("place[:, None] - place +", "place - place[:, None] +"),
            ("mixed + self.get_v(v)", "mixed - self.get_v(v)"),
        ),
    ),
    "softmax": Row(
        softmax.reference,
        "N^2",
        variants=({"qkv_bias": False},),
        mutants=(("size=(height, width)", "size=(width, height)"),),
    ),
    "super_attention": Row(
        super_attention.reference,
        "N^2",
        variants=(
            {"form": "efficient"},
            {"form": "optimised", "qkv_bias": False},
            {"table_size": (5, 7)},
            {"table_size": (3, 2), "qkv_bias": False},  # fewer cells than tokens
        ),
        positioned=({}, {"form": "optimised"}),
        mutants=(
            ("alpha=cells / tokens", "alpha=1"),
            ("height, width)[0].flatten(1).mT", "height, width)[0].flatten(1)"),
            ("self.alignment @ sums(", "self.alignment.mT @ sums(", {"table_size": (3, 2)}),
            (
                "resizing(cells, length, x.device, x.dtype).mT",
                "resizing(cells, length, x.device, x.dtype).flip(0).mT",
                {"table_size": (3, 2)},
            ),
            ("k = x.to(q.dtype)", "k = q"),
            ("values) if self.form", "q[:, :, 0].transpose(1, 2).reshape(x.shape)) if self.form"),
        ),
        linear_memory=True,
    ),
    "token_aggregation": Row(
        token_aggregation.reference,
        "N",
        variants=(
            {"num_centres": 3, "group_size": 8},
            {"num_centres": 5, "group_size": 30, "qk_dim": 8, "qkv_bias": False},  # 35 tokens: less than 1.5 groups
        ),
        mutants=(
            ("(own + shared)[:, :,", "(own - shared)[:, :,"),
            ("t[:, :, 1:]), dim=3)", "t[:, :, :-1]), dim=3)", {"group_size": 8}),
            ("return torch.minimum(place, 2 * length - 1 - place)", "return place % length", {"group_size": 8}),
            ("nearest(directions, unit(centres))", "nearest(directions, centres)", {"group_size": 8}),
        ),
        prepare=unequal_centres,
    ),
    "window": Row(
        window.reference,
        "N",
        variants=(
            {"window_size": 4},
            {"window_size": (2, 3), "shift": (1, 2)},
            {"window_size": 4, "shift": "half"},
            {"window_size": (3, 7), "shift": "half", "qkv_bias": False},
        ),
        positioned=({}, {"window_size": (2, 3), "shift": (1, 2)}),
        mutants=(
            ("s // 2 for s in size", "s // 3 for s in size", {"window_size": 4, "shift": "half"}),
            ("(rolled + shift)", "(rolled - shift)", {"window_size": 4, "shift": 1}),
            ("torch.div(position - shift,", "torch.div(position,", {"window_size": 4, "shift": 1}),
            ("0 if s == length else by for", "by for", {"shift": "half"}),
            ("extent=self.window_size", "extent=size"),
        ),
        counted={"window_size": 4, "shift": 0},
    ),
}
