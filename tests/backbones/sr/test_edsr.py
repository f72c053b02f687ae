"""EDSR against its equations written out here, the release's names, and counts by hand."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vantage.backbones.sr.edsr import EDSR, VARIANTS

COUNTS = {
    ("edsr_baseline", 2): 1_369_859,
    ("edsr_baseline", 3): 1_554_499,
    ("edsr_baseline", 4): 1_517_571,  # the paper's 1.5 M
    ("edsr_baseline", 8): 1_665_283,
    ("edsr", 2): 40_729_603,
    ("edsr", 3): 43_680_003,
    ("edsr", 4): 43_089_923,  # the paper's 43 M
    ("edsr", 8): 45_450_243,
}
MEAN = torch.tensor([0.4488, 0.4371, 0.4040])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(scale=2, **keywords):
    return EDSR(scale=scale, **{"dim": 6, "num_blocks": 2, "res_scale": 0.3} | keywords)


# the equations


def convolve(weights, name, x):
    kernel = weights[f"{name}.weight"]
    return F.conv2d(x, kernel, weights[f"{name}.bias"], padding=kernel.shape[-1] // 2)


def enlarge(weights, x, scale):
    """The convolutions and shuffles, and the convolution to colours."""
    for step, factor in enumerate([3] if scale == 3 else [2] * {2: 1, 4: 2, 8: 3}[scale]):
        x = convolve(weights, f"tail.0.{2 * step}", x)
        large = x.new_empty(len(x), x.shape[1] // factor**2, factor * x.shape[2], factor * x.shape[3])
        for i in range(factor):
            for j in range(factor):
                large[:, :, i::factor, j::factor] = x[:, i * factor + j :: factor**2]
        x = large
    return convolve(weights, "tail.1", x)


def written_out(weights, x, scale, num_blocks, res_scale):
    shallow = deep = convolve(weights, "head.0", 255 * x)
    for block in range(num_blocks):
        inner = convolve(weights, f"body.{block}.body.0", deep).clamp(min=0)
        deep = deep + res_scale * convolve(weights, f"body.{block}.body.2", inner)
    return enlarge(weights, shallow + convolve(weights, f"body.{num_blocks}", deep), scale) / 255


def assert_same_with_gradients(net, reference, x):
    """Both agree in float64, in value and in the gradients of x and of every parameter."""
    x.requires_grad_()
    found, expected = net(x), reference(dict(net.named_parameters()), x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    cotangent = torch.randn_like(found)
    leaves = [x, *net.parameters()]
    ours, theirs = (torch.autograd.grad(out, leaves, cotangent) for out in (found, expected))
    for own, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3)])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_equals_the_equations(scale, size):
    net = build(scale, in_chans=2).double()
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    assert net(x).shape == (2, 2, scale * size[0], scale * size[1])
    assert_same_with_gradients(net, lambda weights, x: written_out(weights, x, scale, 2, 0.3), x)


def test_shifting_the_picture_shifts_the_result_inside_the_border():
    net = build().double()
    wide = torch.randn(1, 3, 20, 22, dtype=torch.float64)
    whole, part = net(wide)[..., 4:, 6:], net(wide[..., 2:, 3:])
    reach = 2 * 7 + 1  # of seven convolutions at the small picture's size and one at the large one's
    torch.testing.assert_close(part[..., reach:, reach:], whole[..., reach:, reach:])
    assert not torch.allclose(part[..., reach - 1, :], whole[..., reach - 1, :])


# the release


@pytest.mark.parametrize(("variant", "scale"), COUNTS)
def test_parameter_counts(variant, scale):
    def conv(inputs, outputs):
        return outputs * (9 * inputs + 1)

    dim, blocks = {"edsr_baseline": (64, 16), "edsr": (256, 32)}[variant]
    steps = {2: 1, 4: 2, 8: 3}
    up = conv(dim, 9 * dim) if scale == 3 else steps[scale] * conv(dim, 4 * dim)
    by_hand = conv(3, dim) + (2 * blocks + 1) * conv(dim, dim) + up + conv(dim, 3)
    with torch.device("meta"):
        net = EDSR(scale=scale, **VARIANTS[variant])
    assert sum(parameter.numel() for parameter in net.parameters()) == by_hand == COUNTS[variant, scale]


def test_names_of_the_release():
    layers = ["head.0", "body.0.body.0", "body.0.body.2", "body.1.body.0", "body.1.body.2", "body.2"]
    layers += ["tail.0.0", "tail.0.2", "tail.1"]
    assert list(build(scale=4).state_dict()) == [f"{one}.{kind}" for one in layers for kind in ("weight", "bias")]
    with torch.device("meta"):
        state = EDSR(scale=3, **VARIANTS["edsr"]).state_dict()
    assert len(state) == 2 * (1 + 64 + 1 + 1 + 1)
    assert state["body.31.body.2.weight"].shape == (256, 256, 3, 3)
    assert state["tail.0.0.bias"].shape == (9 * 256,)


def test_residual_scaling_of_the_variants():
    with torch.device("meta"):
        nets = {name: EDSR(scale=2, **keywords) for name, keywords in VARIANTS.items()}
    assert {name: net.body[0].res_scale for name, net in nets.items()} == {"edsr_baseline": 1.0, "edsr": 0.1}


def test_colour_shifts_of_a_checkpoint_are_dropped_and_nothing_else():
    source, target = (nn.ModuleDict({"net": build()}) for _ in range(2))
    state = source.state_dict()
    for sign, shift in ((-1, "sub_mean"), (1, "add_mean")):
        state |= {f"net.{shift}.weight": torch.eye(3).view(3, 3, 1, 1), f"net.{shift}.bias": sign * 255 * MEAN}
    names = set(state)
    target.load_state_dict(state)
    assert set(state) == names
    x = torch.rand(1, 3, 4, 5)
    assert torch.equal(source["net"](x), target["net"](x))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*mean_shift"):
        target.load_state_dict(state | {"net.mean_shift.weight": torch.zeros(1)})


# the contract


def test_every_parameter_learns_and_half_precision_is_close():
    net = build(scale=3)
    x = torch.rand(2, 3, 5, 7) - MEAN.view(3, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x)
    wanted = net(x)
    assert (out - wanted).abs().max() < 0.03 * wanted.abs().max()
    wanted.square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_compiles_exports_copies_and_pickles():
    net, x = build().eval(), torch.rand(2, 3, 5, 7)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    exported = torch.export.export(net, (x,)).module()
    for twin in (compiled, exported, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(twin(x), net(x))


def test_a_copy_drops_the_colour_shifts_too():
    for twin in (copy.deepcopy(build()), pickle.loads(pickle.dumps(build()))):
        twin.load_state_dict(twin.state_dict() | {"sub_mean.bias": MEAN})


def test_has_no_slots_and_refuses_other_scales():
    assert build().slots() == []
    with pytest.raises(ValueError, match=r"data\.scale=5 is not 2, 3, 4 or 8"):
        build(scale=5)
