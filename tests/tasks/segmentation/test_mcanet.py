"""MCANet: the equations by loops, its symmetries, the published number of parameters, any backbone's maps."""

import pytest
import torch
from torch.nn import functional as F

from vantage.tasks.segmentation.decoders import mcanet
from vantage.tasks.segmentation.decoders.mcanet import MCANet, MultiScaleCrossAxis, cross_axis
from vantage.tasks.segmentation.wrap import wrap

from .backbones import STRIDES, channels_of, random_maps


def make_attention(dim=16, num_heads=8, seed=0):
    torch.manual_seed(seed)
    module = MultiScaleCrossAxis(dim, num_heads).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def by_loops(module, x):
    """The equations of one picture, head by head and row by row."""
    dim, height, width = x.shape[1:]
    normed = F.layer_norm(x.movedim(1, -1), (dim,), module.norm.weight, module.norm.bias).movedim(-1, 1)
    matrix, bias = module.proj.weight[:, :, 0, 0], module.proj.bias

    def project(one):
        return torch.einsum("oc,chw->ohw", matrix, one) + bias[:, None, None]

    def strips(convolutions, horizontal):
        total = torch.zeros_like(normed[0])
        for convolution in convolutions:
            kernel, reach = convolution.weight.flatten(1), convolution.weight.numel() // dim // 2
            padded = F.pad(normed[0], (reach, reach, 0, 0) if horizontal else (0, 0, reach, reach))
            for tap in range(2 * reach + 1):
                seen = padded[:, :, tap : tap + width] if horizontal else padded[:, tap : tap + height]
                total = total + kernel[:, tap, None, None] * seen
            total = total + convolution.bias[:, None, None]
        return project(total)

    across, down = strips(module.horizontal, True), strips(module.vertical, False)
    rows, columns = torch.zeros_like(across), torch.zeros_like(across)
    size = dim // module.num_heads
    for head in range(module.num_heads):
        own = slice(head * size, (head + 1) * size)
        for out, queries, values, axis in ((rows, down, across, 1), (columns, across, down, 2)):
            queries, values = queries[own].unbind(axis), values[own].unbind(axis)
            for index, query in enumerate(queries):
                query = query / query.norm()
                cosines = torch.stack([(query * value / value.norm()).sum() for value in values])
                weights = cosines.exp() / cosines.exp().sum()
                result = sum(weight * value for weight, value in zip(weights, values)) + query
                out[own].select(axis, index).copy_(result)
    return project(rows) + project(columns) + x[0]


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(5, 8), (9, 3)])
def test_the_attention_is_its_equations(height, width):
    module = make_attention(num_heads=4)
    x = torch.randn(1, 16, height, width, dtype=torch.float64)
    torch.testing.assert_close(module(x)[0], by_loops(module, x))


@torch.no_grad()
def test_transposing_the_picture_and_swapping_the_strips_transposes_the_result():
    module, swapped = make_attention(), make_attention(seed=1)
    swapped.norm.load_state_dict(module.norm.state_dict())
    swapped.proj.load_state_dict(module.proj.state_dict())
    for to, of in ((swapped.vertical, module.horizontal), (swapped.horizontal, module.vertical)):
        for own, other in zip(to, of):
            own.weight.copy_(other.weight.mT)
            own.bias.copy_(other.bias)
    x = torch.randn(2, 16, 12, 7, dtype=torch.float64)
    torch.testing.assert_close(swapped(x.mT), module(x).mT)
    assert not torch.allclose(module(x.mT), module(x).mT)


@torch.no_grad()
def test_without_its_projection_the_attention_is_the_identity():
    module = make_attention()
    module.proj.weight.zero_()
    module.proj.bias.zero_()
    x = torch.randn(2, 16, 6, 7, dtype=torch.float64)
    assert torch.equal(module(x), x)


def test_weights_are_one_row_of_probabilities_per_row_and_per_column(monkeypatch):
    maps = []

    def spy(queries, keys, values):
        with torch.enable_grad():
            values = values.clone().requires_grad_()
            rows = cross_axis(queries, keys, values)[..., 0].sum((0, 1))  # (N,)
            # the derivative of a row of the result by the rows of the values is a row of A
            weights = [torch.autograd.grad(row, values, retain_graph=True)[0][..., 0] for row in rows]
        maps.append(torch.stack(weights, 2))
        return cross_axis(queries, keys, values.detach())

    monkeypatch.setattr(mcanet, "cross_axis", spy)
    with torch.no_grad():
        make_attention(num_heads=8)(torch.randn(2, 16, 5, 9, dtype=torch.float64))
    assert [tuple(one.shape) for one in maps] == [(2, 8, 5, 5), (2, 8, 9, 9)]
    for one in maps:
        assert (one > 0).all()
        torch.testing.assert_close(one.sum(-1), torch.ones_like(one[..., 0]))


def test_the_published_head_has_its_parameters_less_the_temperature():
    head = MCANet([32, 64, 160, 256], [4, 8, 16, 32], num_classes=1)
    assert sum(parameter.numel() for parameter in head.parameters()) == 143_817 - 8  # one temperature per head


@pytest.mark.parametrize(("size", "batch"), [((64, 96), 2), ((75, 101), 1), ((32, 32), 1)])
@pytest.mark.parametrize("name", STRIDES)
def test_any_backbone(name, size, batch):
    strides = STRIDES[name]
    head = MCANet(channels_of(strides), strides, num_classes=3)
    logits = head(random_maps(strides, size, batch))
    finest = min(stride for stride in strides if stride >= 4)
    assert logits.shape == (batch, 3, -(-size[0] // finest), -(-size[1] // finest))
    logits.square().sum().backward()
    unused = [name for name, parameter in head.named_parameters() if parameter.grad is None]
    assert not unused
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_every_parameter_matters():
    torch.manual_seed(0)
    head = MCANet([16, 32, 32], [4, 8, 16], num_classes=2, dropout=0.0)
    head([torch.randn(2, width, side, side) for width, side in ((16, 24), (32, 12), (32, 6))]).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


def test_a_single_map_is_the_finest_and_the_others():
    head = MCANet([12], [16], num_classes=2)
    assert head.squeeze.conv.in_channels == 12
    assert head.attention.num_heads == 4  # the greatest that divides 8 and 12


def test_the_finest_map_leads_where_there_are_five():
    head = MCANet([4, 8, 12, 16, 20], [2, 4, 8, 16, 32], num_classes=2, finest_stride=2)
    assert head.levels == [0, 1, 2, 3, 4]
    assert head(random_maps([2, 4, 8, 16, 32], (64, 64))).shape == (2, 2, 32, 32)
    assert head.squeeze.conv.in_channels == 8 + 12 + 16 + 20


def test_heads_that_do_not_divide_the_channels_are_refused():
    sentence = "8 heads do not divide 20 channels; use num_heads=4"
    with pytest.raises(ValueError, match=sentence):
        MultiScaleCrossAxis(20, 8)


@torch.no_grad()
def test_bfloat16_stays_near():
    torch.manual_seed(0)
    head = MCANet([16, 32], [4, 8], num_classes=2).eval()
    maps = [torch.randn(1, 16, 16, 24), torch.randn(1, 32, 8, 12)]
    exact = head(maps)
    with torch.autocast("cpu", torch.bfloat16):
        near = head(maps)
    assert near.dtype == torch.bfloat16
    assert (near - exact).abs().max() < 0.05 * exact.abs().max()


@torch.no_grad()
def test_a_wrapped_head_turns_with_the_panorama():
    torch.manual_seed(0)
    head = MCANet([16, 32], [4, 8], num_classes=2).double().eval()
    maps = [torch.randn(1, 16, 8, 32, dtype=torch.float64), torch.randn(1, 32, 4, 16, dtype=torch.float64)]
    turned = [maps[0].roll(6, -1), maps[1].roll(3, -1)]
    assert not torch.allclose(head(turned), head(maps).roll(6, -1))
    assert not wrap(head)
    torch.testing.assert_close(head(turned), head(maps).roll(6, -1))
