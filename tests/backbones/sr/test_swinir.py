"""SwinIR against its equations written densely, in the names, the layouts and the border rule of the release."""

import copy
import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vantage.attention.window import Window
from vantage.backbones.sr.network import SRNetwork
from vantage.backbones.sr.swinir import VARIANTS, SwinIR
from vantage.position.rel_bias import RelBias

TINY = {"dim": 6, "num_heads": 2, "depths": (2, 1), "window_size": 4}
WINDOW, HEADS = TINY["window_size"], TINY["num_heads"]
GROUP = "layers.0.residual_group.blocks."


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tiny(scale=2, **keywords):
    """A network without a zero or a one among its parameters, in float64."""
    net = SwinIR(scale=scale, **TINY | keywords).double().eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


def picture(height, width, chans=3):
    return torch.randn(2, chans, height, width, dtype=torch.float64, requires_grad=True)


def in_the_release(weights):
    """Names and layouts of the release: (offsets, heads) tables that count query - key, and buffers made from sizes."""
    release = {}
    for name, tensor in weights.items():
        if name.endswith("position.table"):
            attn = name.removesuffix("position.table")
            release[f"{attn}relative_position_bias_table"] = tensor.flip(1, 2).flatten(1).T
            release[f"{attn}relative_position_index"] = torch.zeros(WINDOW**2, WINDOW**2, dtype=torch.long)
            if ".1.attn" in name:
                release[f"{attn.removesuffix('attn.')}attn_mask"] = torch.zeros(4, WINDOW**2, WINDOW**2)
        else:
            release[name] = tensor
    return release


def dense_attention(x, weights, shift):
    """x (B, H, W, C), H and W multiples of the window: (N, N) logits, from the release's table."""
    batch, height, width, dim = x.shape
    rows, cols = (part.flatten() for part in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    same = torch.ones(len(rows), len(rows), dtype=torch.bool)
    index = torch.zeros(len(rows), len(rows), dtype=torch.long)
    for place in (rows, cols):
        window = torch.div(place - shift, WINDOW, rounding_mode="floor")  # -1 holds what lies before the first
        same &= window[:, None] == window
        index = index * (2 * WINDOW - 1) + (place[:, None] - place + WINDOW - 1).clamp(0, 2 * WINDOW - 2)
    q, k, v = (x.reshape(batch, -1, dim) @ weights["qkv.weight"].T + weights["qkv.bias"]).chunk(3, -1)
    out = []
    for head in range(HEADS):
        part = slice(head * dim // HEADS, (head + 1) * dim // HEADS)
        logits = q[..., part] @ k[..., part].mT / math.sqrt(dim // HEADS)
        logits = logits + weights["relative_position_bias_table"][index, head]
        out.append(logits.masked_fill(~same, -math.inf).softmax(-1) @ v[..., part])
    out = torch.cat(out, -1) @ weights["proj.weight"].T + weights["proj.bias"]
    return out.view(x.shape)


def dense_swinir(x, release, scale, depths):
    """The network from the release's tensors, on the picture that numpy reflects."""

    def under(prefix):
        return {name.removeprefix(prefix): tensor for name, tensor in release.items() if name.startswith(prefix)}

    def conv(x, name):
        return F.conv2d(x, release[f"{name}.weight"], release[f"{name}.bias"], padding=1)

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return x * release[f"{name}.weight"] + release[f"{name}.bias"]

    def linear(x, name):
        return x @ release[f"{name}.weight"].T + release[f"{name}.bias"]

    height, width = x.shape[-2:]
    rows, cols = (np.pad(np.arange(side), (0, -side % WINDOW), mode="reflect") for side in (height, width))
    shallow = conv(x[:, :, rows][..., cols], "conv_first")
    tokens = norm(shallow.permute(0, 2, 3, 1), "patch_embed.norm")
    for layer, depth in enumerate(depths):
        inner = tokens
        for index in range(depth):
            block = f"layers.{layer}.residual_group.blocks.{index}"
            shift = WINDOW // 2 if index % 2 else 0
            inner = inner + dense_attention(norm(inner, f"{block}.norm1"), under(f"{block}.attn."), shift)
            hidden = linear(norm(inner, f"{block}.norm2"), f"{block}.mlp.fc1")
            hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
            inner = inner + linear(hidden, f"{block}.mlp.fc2")
        tokens = tokens + conv(inner.permute(0, 3, 1, 2), f"layers.{layer}.conv").permute(0, 2, 3, 1)
    deep = shallow + conv(norm(tokens, "norm").permute(0, 3, 1, 2), "conv_after_body")
    if "conv_last.weight" in release:
        deep = conv(deep, "conv_before_upsample.0")
        deep = torch.where(deep > 0, deep, 0.01 * deep)
        for step, factor in enumerate({2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}[scale]):
            deep = shuffle(conv(deep, f"upsample.{2 * step}"), factor)
        sr = conv(deep, "conv_last")
    else:
        sr = shuffle(conv(deep, "upsample.0"), scale)
    return sr[..., : scale * height, : scale * width]


def shuffle(x, factor):
    batch, _, height, width = x.shape
    x = x.view(batch, -1, factor, factor, height, width).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, -1, factor * height, factor * width)


@pytest.mark.parametrize(
    ("scale", "upsampler", "hw", "chans"),
    [
        (2, "pixelshuffledirect", (1, 1), 3),  # a side below 3 is reflected to and fro
        (3, "pixelshuffledirect", (2, 9), 3),
        (4, "pixelshuffledirect", (8, 4), 1),  # one window along x: its halves do not meet in a shifted block
        (8, "pixelshuffledirect", (3, 5), 3),
        (2, "pixelshuffle", (7, 12), 3),
        (3, "pixelshuffle", (1, 2), 3),
        (4, "pixelshuffle", (5, 1), 1),
    ],
)
def test_equals_the_equations(scale, upsampler, hw, chans):
    net = tiny(scale, upsampler=upsampler, in_chans=chans)
    x = picture(*hw, chans)
    leaves = dict(net.named_parameters())
    got = net(x)
    wanted = dense_swinir(x, in_the_release(leaves), scale, TINY["depths"])
    assert got.shape == (2, chans, scale * hw[0], scale * hw[1])
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    cotangent = torch.randn_like(got)
    ours, theirs = (torch.autograd.grad((out * cotangent).sum(), [x, *leaves.values()]) for out in (got, wanted))
    for name, our, their in zip(["x", *leaves], ours, theirs):
        torch.testing.assert_close(our, their, rtol=1e-8, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


def test_loads_the_release():
    source, target = tiny(), tiny()
    x = picture(6, 9)
    weights = in_the_release(source.state_dict())
    names = list(weights)
    assert not torch.equal(source(x), target(x))
    target.load_state_dict(weights, strict=True)
    assert torch.equal(source(x), target(x))
    assert list(weights) == names, "the caller's dict is left alone"
    target.load_state_dict(source.state_dict(), strict=True)  # and its own names load too
    del weights[f"{GROUP}0.attn.relative_position_bias_table"]
    with pytest.raises(RuntimeError, match=rf"Missing key.*{GROUP}0\.attn\.position\.table"):
        target.load_state_dict(weights, strict=True)


def test_a_table_of_another_window_is_refused():
    weights = in_the_release(tiny().state_dict())
    weights[f"{GROUP}1.attn.relative_position_bias_table"] = torch.zeros(9, HEADS)  # of windows of 2
    with pytest.raises(RuntimeError, match=rf"{GROUP}1\.attn\.position\.table.*\[2, 3, 3\].*\[2, 7, 7\]"):
        tiny().load_state_dict(weights)


@pytest.mark.parametrize(
    ("variant", "counts"),
    [
        ("swinir_light", {2: 910_152, 3: 918_267, 4: 929_628}),
        ("swinir", {2: 11_752_487, 3: 11_937_127, 4: 11_900_199, 8: 12_047_911}),
    ],
)
def test_parameters_are_those_of_the_release(variant, counts):
    for scale, wanted in counts.items():
        with torch.device("meta"):
            net = SwinIR(scale=scale, **VARIANTS[variant])
        assert sum(parameter.numel() for parameter in net.parameters()) == wanted, scale
        assert not list(net.buffers())


def test_names_and_shapes_are_those_of_the_release():
    with torch.device("meta"):
        light, classical = (
            {name: tuple(tensor.shape) for name, tensor in SwinIR(scale=4, **keywords).state_dict().items()}
            for keywords in VARIANTS.values()
        )
    block = "layers.3.residual_group.blocks.5"
    assert light["conv_first.weight"] == (60, 3, 3, 3)
    assert light["patch_embed.norm.weight"] == (60,)
    assert light[f"{block}.norm1.bias"] == (60,)
    assert light[f"{block}.attn.qkv.weight"] == (180, 60)
    assert light[f"{block}.attn.position.table"] == (6, 15, 15)
    assert light[f"{block}.attn.proj.bias"] == (60,)
    assert light[f"{block}.mlp.fc1.weight"] == (120, 60)
    assert light[f"{block}.mlp.fc2.weight"] == (60, 120)
    assert light["layers.3.conv.weight"] == (60, 60, 3, 3)
    assert light["conv_after_body.weight"] == (60, 60, 3, 3)
    assert light["upsample.0.weight"] == (48, 60, 3, 3)
    assert len(light) == 8 + 2 + 24 * 13 + 4 * 2  # ends, upsampler, blocks, groups
    assert classical["conv_before_upsample.0.weight"] == (64, 180, 3, 3)
    assert classical["upsample.2.weight"] == (256, 64, 3, 3)
    assert classical["conv_last.weight"] == (3, 64, 3, 3)
    assert len(classical) == 8 + 8 + 36 * 13 + 6 * 2


def test_slots_are_the_windows():
    with torch.device("meta"):
        slots = SwinIR(scale=2, **VARIANTS["swinir_light"]).slots()
    assert len(slots) == 24
    assert slots[7].name == "layers.1.residual_group.blocks.1.attn"
    assert [slot.shifted for slot in slots[:4]] == [False, True, False, True]
    assert {(slot.role, slot.dim, slot.num_heads, slot.stride) for slot in slots} == {("local", 60, 6, 1)}


def test_a_swap_keeps_the_projections():
    """Windows of our own with the same tables are the same network, on a map of more than one window a side."""
    net = tiny().float().double()  # new attentions are born in float32
    x = picture(7, 9)
    wanted = net(x)
    tables = {name: tensor.clone() for name, tensor in net.state_dict().items() if name.endswith("table")}
    network = SRNetwork(net, "swinir", "tiny", scale=2, in_chans=3)
    attention = partial(Window, window_size=WINDOW, roles={"shifted": {"shift": "half"}})
    network.swap(attention, partial(RelBias), "default")
    network.double()
    assert type(net.get_submodule(f"{GROUP}1.attn")) is Window
    assert len(network.report.reused) == 3 * 4
    assert sorted(network.report.new) == sorted(tables)
    assert not torch.allclose(network(x), wanted)
    assert not net.load_state_dict(tables, strict=False).unexpected_keys
    torch.testing.assert_close(network(x), wanted)


def test_pictures_of_a_batch_do_not_mix_and_what_is_far_is_not_seen():
    """Four 3x3 convolutions reach token 4, the second window; behind it conv_first reaches one pixel further."""
    net = tiny(depths=(1,))
    x = picture(8, 16)
    (grad,) = torch.autograd.grad(net(x)[0, :, 0, 0].sum(), x)
    assert (grad[1] == 0).all()
    seen = grad[0].abs().sum(0) > 0
    assert seen[:, :9].all()
    assert not seen[:, 9:].any()


def test_drop_path_grows_with_the_depth():
    net = SwinIR(scale=2, **TINY | {"depths": (2, 2)}, drop_path=0.3)
    rates = [net.get_submodule(slot.name.removesuffix("attn") + "drop_path").drop_prob for slot in net.slots()]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    x = torch.randn(4, 3, 8, 8)
    assert not torch.equal(net(x), net(x))
    assert torch.equal(net.eval()(x), net(x))


@pytest.mark.parametrize("upsampler", ["pixelshuffle", "pixelshuffledirect"])
def test_compile_export_copies_and_autocast(upsampler):
    net = SwinIR(scale=2, **TINY, upsampler=upsampler).eval()
    x = torch.randn(1, 3, 7, 9)
    wanted = net(x)
    assert torch.equal(copy.deepcopy(net)(x), wanted)
    copied = pickle.loads(pickle.dumps(net))
    assert torch.equal(copied(x), wanted)
    copied.load_state_dict(in_the_release(net.state_dict()))
    torch.testing.assert_close(torch.compile(net, backend="aot_eager", fullgraph=True)(x), wanted)
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(x)
    assert (half - wanted).abs().max() < 0.05 * wanted.abs().max()
    net(x).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="upsampler='nearest'; use pixelshuffle or pixelshuffledirect"):
        SwinIR(scale=2, **TINY, upsampler="nearest")
    with pytest.raises(ValueError, match=r"data\.scale=5"):
        SwinIR(scale=5, **TINY)
    with pytest.raises(ValueError, match="dim 7 is not a multiple of num_heads 2"):
        SwinIR(scale=2, **TINY | {"dim": 7})
