"""CAT against explicit attention over pairs of pixels, under the names of its release, and the release's counts."""

import copy
import itertools
import math
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vantage.attention.rwin import Rwin
from vantage.backbones.sr.cat_sr import CATSR, VARIANTS

DIM, HEADS, HIDDEN, DEPTHS = 12, 4, 4, (2, 1)  # HIDDEN: channels of the MLP behind the bias
REGULAR = {"short_sides": (2, 3), "long_side": 4, "mlp_ratio": 2.0}
AXIAL = {"short_sides": (2, 3), "long_side": None, "mlp_ratio": 2.0}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(scale=2, **keywords):
    return CATSR(scale=scale, **{"dim": DIM, "num_heads": HEADS, "depths": DEPTHS} | REGULAR | keywords)


def parameters_of_release(scale=2, mlp=24):
    """{name in the release: random tensor} of a network as above."""
    convs = {"conv_first": (DIM, 3), "conv_after_body": (DIM, DIM), "conv_before_upsample.0": (64, DIM)}
    convs |= {"conv_last": (3, 64)}
    convs |= {f"upsample.{2 * i}": (64 * f * f, 64) for i, f in enumerate({2: [2], 3: [3], 4: [2, 2]}[scale])}
    norms, linears = {"before_RG.1": DIM, "norm": DIM}, {}
    for group, depth in enumerate(DEPTHS):
        convs[f"layers.{group}.conv"] = (DIM, DIM)
        for block in (f"layers.{group}.blocks.{index}" for index in range(depth)):
            norms |= {f"{block}.norm1": DIM, f"{block}.norm2": DIM}
            linears |= {f"{block}.qkv": (3 * DIM, DIM), f"{block}.proj": (DIM, DIM)}
            linears |= {f"{block}.mlp.fc1": (mlp, DIM), f"{block}.mlp.fc2": (DIM, mlp)}
            convs[f"{block}.get_v"] = (DIM, 1)
            for pos in (f"{block}.attns.{direction}.pos" for direction in range(2)):
                linears[f"{pos}.pos_proj"] = (HIDDEN, 2)
                for step, out in (("pos1", HIDDEN), ("pos2", HIDDEN), ("pos3", HEADS // 2)):
                    norms[f"{pos}.{step}.0"] = HIDDEN
                    linears[f"{pos}.{step}.2"] = (out, HIDDEN)
    shapes = {name: (*shape, 3, 3) for name, shape in convs.items()} | linears
    shapes |= {name: (size,) for name, size in norms.items()}
    made = {}
    for name, shape in shapes.items():
        made[f"{name}.weight"] = 0.4 * torch.randn(shape, dtype=torch.float64)
        made[f"{name}.bias"] = 0.4 * torch.randn(shape[0], dtype=torch.float64)
    return made


# the network from its equations


def sees(query, key, shape, is_shifted, lengths):
    """Rectangles start at s, s + side, ... along an axis, s = side // 2 if shifted; a spanned axis (None) has one."""
    for q, k, side, length in zip(query, key, shape, lengths):
        if side is not None:
            side = min(side, length)
            start = side // 2 if is_shifted else 0
            if (q - start) // side != (k - start) // side:
                return False
    return True


def bias_of(t, pos, offsets):
    """(N, N, 2) query - key -> (heads, N, N)."""
    out = F.linear(offsets, t[f"{pos}.pos_proj.weight"], t[f"{pos}.pos_proj.bias"])
    for step in ("pos1", "pos2", "pos3"):
        out = F.layer_norm(out, (HIDDEN,), t[f"{pos}.{step}.0.weight"], t[f"{pos}.{step}.0.bias"]).relu()
        out = F.linear(out, t[f"{pos}.{step}.2.weight"], t[f"{pos}.{step}.2.bias"])
    return out.movedim(-1, 0)


def attention(t, block, x, shapes, is_shifted):
    """x (B, h, w, C) through both directions, whose rectangles are `shapes`, and the convolution of v."""
    batch, height, width, _ = x.shape
    places = list(itertools.product(range(height), range(width)))
    coords = torch.tensor(places, dtype=x.dtype)
    qkv = F.linear(x, t[f"{block}.qkv.weight"], t[f"{block}.qkv.bias"])
    v_map = qkv[..., 2 * DIM :].permute(0, 3, 1, 2)
    outs = []
    for direction, shape in enumerate(shapes):
        first = direction * DIM // 2
        q, k, v = (
            part[..., first : first + DIM // 2].reshape(batch, -1, HEADS // 2, DIM // HEADS).transpose(1, 2)
            for part in qkv.chunk(3, -1)
        )
        logits = q @ k.mT / math.sqrt(DIM // HEADS)
        logits = logits + bias_of(t, f"{block}.attns.{direction}.pos", coords[:, None] - coords[None])
        allowed = [[sees(a, b, shape, is_shifted, (height, width)) for b in places] for a in places]
        weights = logits.masked_fill(~torch.tensor(allowed), -math.inf).softmax(-1)
        outs.append((weights @ v).transpose(1, 2).reshape(batch, height, width, DIM // 2))
    local = F.conv2d(v_map, t[f"{block}.get_v.weight"], t[f"{block}.get_v.bias"], padding=1, groups=DIM)
    mixed = torch.cat(outs, -1) + local.permute(0, 2, 3, 1)
    return F.linear(mixed, t[f"{block}.proj.weight"], t[f"{block}.proj.bias"])


def reference(t, x, scale, short_sides, long_side, **_):
    def conv(name, x):
        return F.conv2d(x, t[f"{name}.weight"], t[f"{name}.bias"], padding=1)

    def norm(name, x):
        return F.layer_norm(x, (DIM,), t[f"{name}.weight"], t[f"{name}.bias"])

    shallow = conv("conv_first", x)
    tokens = norm("before_RG.1", shallow.permute(0, 2, 3, 1))
    for group, (depth, short) in enumerate(zip(DEPTHS, short_sides)):
        shapes = [(short, long_side), (long_side, short)] if long_side else [(None, short), (short, None)]
        inner = tokens
        for index in range(depth):
            block = f"layers.{group}.blocks.{index}"
            inner = inner + attention(t, block, norm(f"{block}.norm1", inner), shapes, index % 2 == 1)
            hidden = F.linear(norm(f"{block}.norm2", inner), t[f"{block}.mlp.fc1.weight"], t[f"{block}.mlp.fc1.bias"])
            hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
            inner = inner + F.linear(hidden, t[f"{block}.mlp.fc2.weight"], t[f"{block}.mlp.fc2.bias"])
        tokens = tokens + conv(f"layers.{group}.conv", inner.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    deep = shallow + conv("conv_after_body", norm("norm", tokens).permute(0, 3, 1, 2))
    deep = conv("conv_before_upsample.0", deep)
    deep = torch.where(deep > 0, deep, 0.01 * deep)
    for step, factor in enumerate([3] if scale == 3 else [2] * int(math.log2(scale))):
        deep = F.pixel_shuffle(conv(f"upsample.{2 * step}", deep), factor)
    return conv("conv_last", deep)


@pytest.mark.parametrize(
    ("scale", "keywords", "hw"),
    [
        (2, REGULAR, (1, 1)),
        (3, REGULAR, (5, 7)),
        (4, REGULAR, (8, 3)),
        (2, AXIAL, (1, 5)),
        (3, AXIAL, (7, 4)),
        (4, AXIAL, (3, 6)),
    ],
)
def test_equals_the_equations_under_the_names_of_the_release(scale, keywords, hw):
    tensors = {name: tensor.requires_grad_() for name, tensor in parameters_of_release(scale).items()}
    net = build(scale, **keywords).double()
    net.load_state_dict(tensors, strict=True)
    x = torch.randn(2, 3, *hw, dtype=torch.float64, requires_grad=True)
    got, wanted = net(x), reference(tensors, x, scale, **keywords)
    assert got.shape == (2, 3, scale * hw[0], scale * hw[1])
    torch.testing.assert_close(got, wanted)
    cotangent = torch.randn_like(wanted)
    ours = torch.autograd.grad(got, [x, *net.parameters()], cotangent)
    names = [name.replace(".attn.", ".") for name, _ in net.named_parameters()]
    assert sorted(names) == sorted(tensors)
    theirs = torch.autograd.grad(wanted, [x, *(tensors[name] for name in names)], cotangent)
    for name, own, other in zip(["x", *names], ours, theirs):
        torch.testing.assert_close(own, other, msg=lambda text, name=name: f"{name}: {text}")


# the release's numbers and names

COUNTS = {  # x4 as published; x2 and x3 of r_2 counted on the release; the others follow from its upsampler
    ("cat_sr_r", 2): 16_456_103,
    ("cat_sr_r", 3): 16_640_743,
    ("cat_sr_r", 4): 16_603_815,
    ("cat_sr_r", 8): 16_751_527,
    ("cat_sr_a", 4): 16_603_815,
    ("cat_sr_r_2", 2): 11_777_543,
    ("cat_sr_r_2", 3): 11_962_183,
    ("cat_sr_r_2", 4): 11_925_255,
    ("cat_sr_a_2", 4): 16_603_815,
}


@pytest.mark.parametrize(("variant", "scale"), COUNTS)
def test_parameters_are_as_many_as_published(variant, scale):
    with torch.device("meta"):
        net = CATSR(scale=scale, **VARIANTS[variant])
    assert sum(p.numel() for p in net.parameters()) == COUNTS[variant, scale]


@pytest.mark.parametrize(
    ("variant", "sides"),
    [
        ("cat_sr_r", [(4, 16)] * 6),
        ("cat_sr_a", [(2, None)] * 3 + [(4, None)] * 3),
        ("cat_sr_r_2", [(4, 16)] * 6),
        ("cat_sr_a_2", [(4, None)] * 6),
    ],
)
def test_rectangles_of_the_published_networks(variant, sides):
    with torch.device("meta"):
        net = CATSR(scale=4, **VARIANTS[variant])
    for group, wanted in zip(net.layers, sides, strict=True):
        assert [(block.attn.short_side, block.attn.long_side) for block in group.blocks] == [wanted] * 6
        assert [block.attn.shift for block in group.blocks] == [0, "half"] * 3


def test_the_default_is_cat_r():
    with torch.device("meta"):
        nets = CATSR(scale=4), CATSR(scale=4, **VARIANTS["cat_sr_r"])
    assert repr(nets[0]) == repr(nets[1])


def test_shapes_are_those_of_the_release():
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in CATSR(scale=4).state_dict().items()}
    assert len(shapes) == 1540
    assert shapes["layers.5.blocks.5.attn.qkv.weight"] == (540, 180)
    assert shapes["layers.0.blocks.1.attn.attns.1.pos.pos_proj.weight"] == (5, 2)
    assert shapes["layers.0.blocks.1.attn.attns.0.pos.pos3.2.weight"] == (3, 5)
    assert shapes["layers.0.blocks.0.attn.get_v.weight"] == (180, 1, 3, 3)
    assert shapes["layers.2.blocks.3.mlp.fc1.weight"] == (720, 180)
    assert shapes["before_RG.1.weight"] == (180,)
    assert shapes["upsample.2.weight"] == (256, 64, 3, 3)


def test_buffers_of_the_release_are_dropped_and_nothing_else():
    tensors = parameters_of_release()
    tensors["layers.0.blocks.1.attn_mask_0"] = torch.zeros(8, 8, 8)
    tensors["layers.0.blocks.1.attn_mask_1"] = torch.zeros(8, 8, 8)
    tensors["layers.0.blocks.0.attns.0.rpe_biases"] = torch.zeros(21, 2)
    tensors["layers.0.blocks.0.attns.1.relative_position_index"] = torch.zeros(8, 8)
    before = dict(tensors)
    net = build().double()
    net.load_state_dict(tensors, strict=True)
    assert tensors == before, "the caller's dict stays as it was"
    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()}
    build().double().load_state_dict(net.state_dict(), strict=True)
    with pytest.raises(RuntimeError, match=r"qkv\.scale"):
        net.load_state_dict(tensors | {"layers.0.blocks.0.qkv.scale": torch.ones(1)})
    del tensors["layers.1.blocks.0.get_v.bias"]
    with pytest.raises(RuntimeError, match=r"layers\.1\.blocks\.0\.attn\.get_v\.bias"):
        net.load_state_dict(tensors)


# slots and the rest of the interface


def test_slots_take_and_give_the_whole_map():
    net = build()
    slots = net.slots()
    assert [slot.name for slot in slots] == [
        "layers.0.blocks.0.attn",
        "layers.0.blocks.1.attn",
        "layers.1.blocks.0.attn",
    ]
    assert [slot.shifted for slot in slots] == [False, True, False]
    assert [slot.stage for slot in slots] == [0, 0, 1]
    assert {(slot.role, slot.dim, slot.num_heads, slot.stride) for slot in slots} == {("local", DIM, HEADS, 1)}

    class Recorder(nn.Module):
        def forward(self, x):
            seen.append(x.shape)
            return x

    seen = []
    for slot in slots:
        net.set_submodule(slot.name, Recorder())
    assert net(torch.randn(2, 3, 5, 7)).shape == (2, 3, 10, 14)
    assert seen == [(2, 5, 7, DIM)] * 3


def test_compile_and_export():
    torch._dynamo.reset()
    net = build(depths=(1, 1)).eval()
    net.layers[1].blocks[0].attn = Rwin(DIM, HEADS, short_side=2, long_side=None, shift="half")  # one of each kind
    x = torch.randn(1, 3, 5, 7)
    wanted = net(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = torch.compile(net, backend="aot_eager", fullgraph=True)(x)
        gradients = [torch.autograd.grad(out.square().sum(), list(net.parameters())) for out in (got, wanted)]
        exported = torch.export.export(net, (x,)).module()
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(exported(x), wanted)


@pytest.mark.parametrize("keywords", [REGULAR, AXIAL])
def test_copies_and_half_precision(keywords):
    net = build(**keywords).eval()
    x = torch.randn(1, 3, 5, 7)
    wanted = net(x)
    assert torch.equal(copy.deepcopy(net)(x), wanted)
    again = pickle.loads(pickle.dumps(net))
    assert torch.equal(again(x), wanted)
    again.double().load_state_dict(parameters_of_release())  # the hook went along
    with torch.autocast("cpu", torch.bfloat16):
        half = net(x)
    assert (half.float() - wanted).abs().max() < 0.05 * wanted.abs().max()


@pytest.mark.parametrize("keywords", [REGULAR, AXIAL])
def test_every_parameter_gets_a_gradient(keywords):
    net = build(**keywords)
    net(torch.randn(1, 3, 6, 9)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        if not name.endswith("pos3.2.bias"):  # moves all logits of a head alike
            assert parameter.grad.any(), name


def test_projections_start_as_in_the_release():
    net = build(dim=120)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            assert not module.bias.any()
            assert module.weight.abs().max() < 0.12
    assert net.layers[0].blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_drop_path_grows_with_depth_and_acts_in_training_only():
    net = build(depths=(2, 3), drop_path=0.4)
    rates = [block.drop_path.drop_prob for group in net.layers for block in group.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    x = torch.randn(4, 3, 4, 4)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
    assert all(block.drop_path.drop_prob == 0 for group in build().layers for block in group.blocks)


def test_grad_checkpointing_computes_blocks_again_and_changes_nothing():
    x = torch.randn(2, 3, 4, 5)
    nets = [build(drop_path=0.3, grad_checkpointing=flag) for flag in (False, True)]
    nets[1].load_state_dict(nets[0].state_dict())
    gradients, calls = [], []
    for net in nets:
        runs = []
        net.layers[0].blocks[1].mlp.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        torch.manual_seed(1)
        gradients.append(torch.autograd.grad(net(x).square().sum(), list(net.parameters())))
        calls.append(len(runs))
    assert calls == [1, 2]
    torch.testing.assert_close(*gradients)


def test_bad_values_are_named():
    with pytest.raises(ValueError, match=r"data\.scale=5 is not 2, 3, 4 or 8"):
        build(scale=5)
    with pytest.raises(ValueError, match=r"cat_sr: short_sides=\(2,\) and depths=\(2, 1\); give both one per group"):
        build(short_sides=(2,))
