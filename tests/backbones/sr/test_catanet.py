"""CATANet against its equations written densely, with the names and the counts of the release."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vantage.attention.lrsa import Lrsa
from vantage.attention.token_aggregation import TokenAggregation
from vantage.attention.window import Window
from vantage.backbones.sr.catanet import VARIANTS, CATANet

TINY = {
    "dim": 8,
    "num_heads": 2,
    "qk_dim": 6,
    "mlp_dim": 5,
    "num_centres": (3, 2),
    "group_size": (6, 9),
    "window_size": (4, 5),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tiny(scale=2, **keywords):
    """A network without a zero or a one among its parameters, in float64."""
    net = CATANet(scale=scale, **TINY | keywords).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


def picture(height, width, batch=2, chans=3):
    return torch.randn(batch, chans, height, width, dtype=torch.float64, requires_grad=True)


# the release's counts and names


@pytest.mark.parametrize(("scale", "count"), [(2, 477_435), (3, 549_635), (4, 535_195)])
def test_parameters_are_as_many_as_in_the_release(scale, count):
    with torch.device("meta"):
        net = CATANet(scale=scale, **VARIANTS["catanet"])
    assert sum(parameter.numel() for parameter in net.parameters()) == count


def test_the_blocks_vary_as_in_the_paper():
    with torch.device("meta"):
        blocks = CATANet(scale=2).blocks
    mixers = [block[0].attn for block in blocks]
    assert [mixer.num_centres for mixer in mixers] == [16, 32, 64, 128, 16, 32, 64, 128]
    assert [mixer.group_size for mixer in mixers] == [256, 128, 64, 32, 256, 128, 64, 32]
    assert [block[1].layer[0].fn.window_size[0] for block in blocks] == [16, 20, 24, 28, 16, 20, 24, 28]
    assert {(mixer.n_iter, mixer.ema_decay, mixer.num_heads) for mixer in mixers} == {(5, 0.999, 4)}


def in_the_release(weights):
    """The release has no module for the mixer of a TAB."""
    return {name.replace(".0.attn.", ".0."): tensor for name, tensor in weights.items()}


def test_names_and_shapes_are_those_of_the_release():
    with torch.device("meta"):
        x4, x3 = (in_the_release(CATANet(scale=scale).state_dict()) for scale in (4, 3))
    shapes = {name: tuple(tensor.shape) for name, tensor in x4.items()}
    some = {
        "first_conv.weight": (40, 3, 3, 3),
        "blocks.0.0.norm.weight": (40,),
        "blocks.3.0.means": (128, 40),
        "blocks.7.0.initted": (),
        "blocks.1.0.irca_attn.to_k.weight": (36, 40),
        "blocks.1.0.iasa_attn.proj.weight": (40, 40),
        "blocks.2.0.conv1x1.weight": (40, 40, 1, 1),
        "blocks.2.0.mlp.norm.bias": (40,),
        "blocks.2.0.mlp.fn.fc1.weight": (96, 40),
        "blocks.2.0.mlp.fn.dwconv.depthwise_conv.0.weight": (96, 1, 5, 5),
        "blocks.4.1.layer.0.norm.weight": (40,),
        "blocks.4.1.layer.0.fn.to_q.weight": (36, 40),
        "blocks.4.1.layer.1.fn.fc2.bias": (40,),
        "mid_convs.7.bias": (40,),
        "upconv1.weight": (160, 40, 3, 3),
        "upconv2.weight": (160, 40, 3, 3),
        "last_conv.weight": (3, 40, 3, 3),
    }
    assert {name: shapes.get(name) for name in some} == some
    assert len(shapes) == 8 * (2 + 7 + 2 + 8 + 2 + 4 + 8 + 2) + 8
    assert tuple(x3["upconv.weight"].shape) == (360, 40, 3, 3)


def test_weights_of_the_release_load():
    net, other = tiny(scale=4), tiny(scale=4)
    with torch.no_grad():
        net(picture(5, 7))  # the centres have moved
    other.load_state_dict(in_the_release(net.state_dict()))
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in other.state_dict().items())
    other = tiny(scale=4)
    other.load_state_dict(net.state_dict())
    x = picture(5, 7)
    assert torch.equal(other.eval()(x), net.eval()(x))


# the equations; mixers image by image, in evaluation


def linear(weights, name, x):
    return x @ weights[f"{name}.weight"].T


def attend(q, k, v, heads):
    parts = []
    for one, two, three in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1)):
        powers = (one @ two.T / math.sqrt(one.shape[-1])).exp()
        parts.append(powers / powers.sum(-1, keepdim=True) @ three)
    return torch.cat(parts, -1)


def norm(weights, name, x):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def aggregation(weights, name, x, group_size, heads):
    """x (N, dim) of one image, raster order."""
    means = weights[f"{name}.means"]
    cosines = F.cosine_similarity(x[:, None], means[None], dim=-1)
    order = sorted(range(len(x)), key=cosines.argmax(-1).tolist().__getitem__)
    size = min(group_size, len(x))
    line = (order + order[::-1]) * 2
    q, k, v = (linear(weights, f"{name}.iasa_attn.to_{part}", x) for part in "qkv")
    k_c, v_c = (linear(weights, f"{name}.irca_attn.to_{part}", means) for part in "kv")
    rows = {}
    for start in range(0, len(x), size):
        queries, keys = order[start : start + size], line[start : start + 2 * size]
        out = attend(q[queries], k[keys], v[keys], heads) + attend(q[queries], k_c, v_c, heads)
        rows |= dict(zip(queries, out))
    mixed = torch.stack([rows[token] for token in range(len(x))])
    return linear(weights, f"{name}.iasa_attn.proj", mixed) @ weights[f"{name}.conv1x1.weight"][:, :, 0, 0].T


def starts(length, size):
    """Windows are two pixels less than their size apart; the last one ends with the map, a short map has one."""
    return sorted({min(start, max(length - size, 0)) for start in range(0, max(length - 2, 1), size - 2)})


def local(weights, name, x, height, width, size, heads):
    q, k, v = (linear(weights, f"{name}.to_{part}", x) for part in "qkv")
    total, count = torch.zeros_like(x), torch.zeros(len(x), 1, dtype=x.dtype)
    number = torch.arange(len(x)).view(height, width)
    for top in starts(height, size):
        for left in starts(width, size):
            inside = number[top : top + size, left : left + size].flatten()
            total = total.index_add(0, inside, attend(q[inside], k[inside], v[inside], heads))
            count[inside] += 1
    return linear(weights, f"{name}.proj", total / count)


def ffn(weights, name, x, height, width):
    hidden = F.gelu(linear(weights, f"{name}.fc1", x) + weights[f"{name}.fc1.bias"])
    kernel, bias = (weights[f"{name}.dwconv.depthwise_conv.0.{kind}"] for kind in ("weight", "bias"))
    mixed = F.conv2d(hidden.T.view(1, -1, height, width), kernel, bias, padding=2, groups=len(bias))
    return linear(weights, f"{name}.fc2", hidden + F.gelu(mixed)[0].flatten(1).T) + weights[f"{name}.fc2.bias"]


def conv(weights, name, x):
    return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)


def dense(net, x, scale):
    """One image (1, 3, h, w), from the names of the release."""
    weights = in_the_release(net.state_dict(keep_vars=True))
    height, width, heads = *x.shape[-2:], TINY["num_heads"]
    shallow = deep = conv(weights, "first_conv", x)
    for i, (group, window) in enumerate(zip(TINY["group_size"], TINY["window_size"])):
        tokens, tab, lrsa = deep[0].flatten(1).T, f"blocks.{i}.0", f"blocks.{i}.1.layer"
        tokens = tokens + aggregation(weights, tab, norm(weights, f"{tab}.norm", tokens), group, heads)
        tokens = tokens + ffn(weights, f"{tab}.mlp.fn", norm(weights, f"{tab}.mlp.norm", tokens), height, width)
        normed = norm(weights, f"{lrsa}.0.norm", tokens)
        tokens = tokens + local(weights, f"{lrsa}.0.fn", normed, height, width, window, heads)
        tokens = tokens + ffn(weights, f"{lrsa}.1.fn", norm(weights, f"{lrsa}.1.norm", tokens), height, width)
        deep = deep + conv(weights, f"mid_convs.{i}", tokens.T.reshape(deep.shape))
    out = shallow + deep
    for name, factor in {2: [("upconv", 2)], 3: [("upconv", 3)], 4: [("upconv1", 2), ("upconv2", 2)]}[scale]:
        out = conv(weights, name, out)  # channels c s^2 + i s + j become pixels (s y + i, s x + j)
        out = out.unflatten(1, (-1, factor, factor)).permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3)
        out = torch.where(out > 0, out, 0.1 * out)
    return conv(weights, "last_conv", out) + F.interpolate(x, scale_factor=scale, mode="bilinear")


@pytest.mark.parametrize(("scale", "hw"), [(2, (5, 7)), (3, (9, 4)), (4, (3, 3)), (2, (1, 1)), (4, (1, 6))])
def test_equals_dense(scale, hw):
    net = tiny(scale).eval()
    x = picture(*hw)
    got = net(x)
    wanted = torch.cat([dense(net, one, scale) for one in x[:, None]])
    torch.testing.assert_close(got, wanted)
    cotangent = torch.randn_like(got)
    leaves = [x, *net.parameters()]
    ours = torch.autograd.grad(got, leaves, cotangent)
    theirs = torch.autograd.grad(wanted, leaves, cotangent)
    torch.testing.assert_close(ours, theirs)


# any picture, any scale


@pytest.mark.parametrize("hw", [(1, 1), (2, 3), (31, 2), (29, 17)])
def test_any_picture_goes_in(hw):
    net = CATANet(scale=3, in_chans=1).eval()
    assert net(torch.rand(1, 1, *hw)).shape == (1, 1, 3 * hw[0], 3 * hw[1])


@pytest.mark.parametrize("scale", [1, 8])
def test_other_scales_are_refused(scale):
    with pytest.raises(ValueError, match=f"data.scale={scale} is not 2, 3 or 4"):
        CATANet(scale=scale)


def test_blocks_without_a_keyword_of_their_own_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        tiny(window_size=(4,))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_without_its_last_convolution_it_is_bilinear(scale):
    net, x = tiny(scale), picture(4, 5)
    nn.init.zeros_(net.last_conv.weight)
    nn.init.zeros_(net.last_conv.bias)
    x = torch.arange(5.0).double().expand(2, 3, 4, 5)  # a ramp stays one, in steps of 1 / scale
    wanted = ((torch.arange(5 * scale) + 0.5) / scale - 0.5).clamp(0, 4).double()
    torch.testing.assert_close(net(x), wanted.expand(2, 3, 4 * scale, 5 * scale))


# training


def test_every_parameter_is_trained_and_every_centre_set():
    net = tiny(scale=4)
    assert not any(block[0].attn.initted for block in net.blocks)
    net(picture(5, 7)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(block[0].attn.initted for block in net.blocks)
    before = copy.deepcopy(net.eval().state_dict())
    net(picture(5, 7))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_linear_layers_start_small_and_without_bias():
    for module in CATANet(scale=2, **TINY).modules():
        if isinstance(module, nn.Linear):
            assert 0 < module.weight.abs().max() < 0.1
            assert module.bias is None or not module.bias.any()


# slots


def test_slots_are_the_two_mixers_of_every_block():
    net = tiny()
    found = [(slot.name, slot.role, slot.stage, slot.shifted) for slot in net.slots()]
    assert found == [
        ("blocks.0.0.attn", "full", 0, False),
        ("blocks.0.1.layer.0.fn", "local", 0, False),
        ("blocks.1.0.attn", "full", 1, False),
        ("blocks.1.1.layer.0.fn", "local", 1, True),
    ]
    assert {(slot.dim, slot.num_heads, slot.stride) for slot in net.slots()} == {(8, 2, 1)}
    kinds = {"full": TokenAggregation, "local": Lrsa}
    assert all(type(net.get_submodule(slot.name)) is kinds[slot.role] for slot in net.slots())


def test_a_slot_takes_another_mixer():
    net, x = tiny(), picture(5, 7)
    native = net.eval()(x)
    for slot in net.slots():
        net.set_submodule(slot.name, Window(slot.dim, slot.num_heads, window_size=3).double())
    assert net(x).shape == native.shape
    assert not torch.allclose(net(x), native)
    net(x).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


# graphs, precision, copies


def test_compile_and_export():
    torch._dynamo.reset()
    net = tiny(scale=4)
    other = copy.deepcopy(net)
    compiled, x = torch.compile(other, fullgraph=True, backend="aot_eager"), picture(5, 7)
    wanted, got = net(x), compiled(x)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(got.square().sum(), x), torch.autograd.grad(wanted.square().sum(), x)
    )
    torch.testing.assert_close(other.state_dict(), net.state_dict())
    torch.testing.assert_close(torch.export.export(net.eval(), (x,)).module()(x), net(x))


def test_autocast_stays_near_float32():
    net, x = tiny().float().eval(), picture(9, 7).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x)
    wanted = net(x)
    assert (out.float() - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_deepcopy_and_pickle_keep_the_function():
    net, x = tiny().eval(), picture(5, 7)
    wanted = net(x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x), wanted)
        other.load_state_dict(in_the_release(net.state_dict()))  # the hook is copied too
