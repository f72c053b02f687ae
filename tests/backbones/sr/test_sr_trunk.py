"""The trunk: its arithmetic written out, any attention in its slots, equal parameters with and without."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vantage.attention.neighborhood import Neighborhood
from vantage.attention.softmax import Softmax
from vantage.attention.token_aggregation import TokenAggregation
from vantage.attention.window import Window
from vantage.backbones.sr.build import FAMILIES, build_sr, family_class, variants_of
from vantage.backbones.sr.sr_trunk import VARIANTS, SRTrunk
from vantage.position.rope_axial import RopeAxial

CONFIGS = Path(__file__).parents[3] / "configs/model"
build = partial(build_sr, "sr_trunk", "sr_trunk_pico")


def dense(net: SRTrunk, x: Tensor) -> Tensor:
    """The equations of the file's header, from its weights alone; bicubic by PyTorch, away from the border."""
    w = net.state_dict()

    def conv(name: str, value: Tensor) -> Tensor:
        weight = w[f"{name}.weight"]
        groups = value.shape[1] // weight.shape[1]
        return F.conv2d(value, weight, w[f"{name}.bias"], padding=weight.shape[-1] // 2, groups=groups)

    def linear(name: str, value: Tensor) -> Tensor:
        return torch.einsum("oc,bchw->bohw", w[f"{name}.weight"], value) + w[f"{name}.bias"][:, None, None]

    def norm(name: str, value: Tensor) -> Tensor:
        mean, var = value.mean(1, keepdim=True), value.var(1, keepdim=True, correction=0)
        scaled = (value - mean) / (var + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    def gelu(value: Tensor) -> Tensor:
        return value * (1 + torch.erf(value / 2**0.5)) / 2

    first = deep = conv("conv_first", x)
    for g, group in enumerate(net.groups):
        inner = deep
        for b in range(len(group.blocks)):
            at = f"groups.{g}.blocks.{b}"
            mixed = gelu(conv(f"{at}.attn.mix", linear(f"{at}.attn.expand", norm(f"{at}.norm1", inner))))
            inner = inner + linear(f"{at}.attn.reduce", mixed)
            hidden = gelu(linear(f"{at}.ffn.fc1", norm(f"{at}.norm2", inner)))
            inner = inner + linear(f"{at}.ffn.fc2", hidden + conv(f"{at}.ffn.mix", hidden))
        deep = deep + conv(f"groups.{g}.conv", inner)
    made = conv("upsample.0", first + conv("conv_after", norm("norm", deep)))
    shuffled = (
        made.unflatten(1, (x.shape[1], net.scale, net.scale)).permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)
    )
    size = [side * net.scale for side in x.shape[-2:]]
    return shuffled + F.interpolate(x, size, mode="bicubic", antialias=True)


def randomised(net: SRTrunk) -> SRTrunk:
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net


@pytest.mark.parametrize("scale", [2, 3])
def test_arithmetic(scale: int) -> None:
    torch.manual_seed(0)
    net = randomised(SRTrunk(scale=scale, dim=8, num_heads=2, depths=(1, 2)).double())
    x = torch.randn(2, 3, 9, 14, dtype=torch.float64)
    border = slice(3 * scale, -3 * scale)  # where PyTorch's bicubic shortens its kernel, and MATLAB's mirrors
    torch.testing.assert_close(net(x)[..., border, border], dense(net, x)[..., border, border], rtol=0, atol=1e-12)
    leaf = x.clone().requires_grad_()
    mine = torch.autograd.grad(net(leaf)[..., border, border].square().sum(), leaf)[0]
    other = torch.autograd.grad(dense(net, leaf)[..., border, border].square().sum(), leaf)[0]
    torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_and_convolution_have_equal_parameters(variant: str) -> None:
    counts = []
    for attention in (None, partial(Neighborhood, kernel_size=7), partial(Window, window_size=8)):
        with torch.device("meta"):
            network = build_sr("sr_trunk", variant, attention=attention)
        counts.append(sum(parameter.numel() for parameter in network.parameters()))
    assert max(counts) / min(counts) < 1.04  # 18 dim more for each depthwise convolution
    sizes = {"sr_trunk_pico": (0.05e6, 0.12e6), "sr_trunk_light": (0.7e6, 1.1e6), "sr_trunk_base": (9e6, 14e6)}
    assert sizes[variant][0] < counts[0] < sizes[variant][1]


@pytest.mark.parametrize(
    "attention",
    [
        partial(Neighborhood, kernel_size=3),
        partial(Window, window_size=4, roles={"shifted": {"shift": "half"}}),
        Softmax,
    ],
    ids=["neighborhood", "window", "softmax"],
)
@pytest.mark.parametrize("size", [(1, 1), (5, 13), (16, 16)])
def test_any_attention_at_any_size(attention, size: tuple[int, int]) -> None:
    network = build(attention=partial(attention), position=partial(RopeAxial))
    assert len(network.installed()) == len(network.slots()) == 4
    assert [slot.shifted for slot in network.slots()] == [False, True, False, True]
    x = torch.randn(2, 3, *size)
    made = network(x)
    assert made.shape == (2, 3, 2 * size[0], 2 * size[1])
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    network(x).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_compiles_exports_and_copies() -> None:
    network = build(attention=partial(Neighborhood, kernel_size=3, backend="reference")).eval()
    randomised(network.net)
    x = torch.randn(1, 3, 8, 9)
    expected = network(x)
    torch.testing.assert_close(torch.compile(network, backend="aot_eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), expected)
    torch.testing.assert_close(copy.deepcopy(network)(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert (network(x) - expected).abs().max() < 0.1 * expected.abs().max()


def test_every_family_has_a_config_and_a_class() -> None:
    for family in FAMILIES:
        assert (CONFIGS / f"{family}.yaml").is_file()
        assert all(name.startswith(family) for name in variants_of(family))
        assert callable(family_class(family))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("sr_trunk", "sr_trunk_nano"), "no sr_trunk variant; there are sr_trunk_pico, sr_trunk_light"),
        (("rcan", "rcan"), "model.family=rcan is no super-resolution network; there are sr_trunk, swinir"),
    ],
)
def test_wrong_names(arguments: tuple[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        build_sr(*arguments)


def test_what_a_network_does_not_have() -> None:
    with pytest.raises(
        ValueError, match=r"edsr_baseline has no slot that attention=neighborhood could fill; use attention=native"
    ):
        build_sr("edsr", "edsr_baseline", attention=partial(Neighborhood))
    with pytest.raises(ValueError, match=r"model\.drop_path=0\.1: sr_trunk has no such thing; leave it 0\.0"):
        build(drop_path=0.1)
    with pytest.raises(ValueError, match=r"computes attention=token_aggregation twice"):
        build(grad_checkpointing=True, attention=partial(TokenAggregation))
    with pytest.raises(ValueError, match=r"position=rope_axial needs an attention"):
        build(position=partial(RopeAxial))
