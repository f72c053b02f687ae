"""Wrapped layers give what they give inside the periodic picture; wrapped networks turn with a panorama."""

import copy
import itertools
import pickle
from functools import partial

import pytest
import timm
import torch
from timm.layers import AvgPool2dSame, BlurPool2d, Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from torch import nn

from vantage.attention import FocusedLinear
from vantage.backbones.build import build_backbone
from vantage.plugs.adaptive_rotated_conv import AdaptiveRotatedConv
from vantage.tasks.segmentation.resize import Resize
from vantage.tasks.segmentation.wrap import WRAPPED, pad_columns, wrap

TURNS = 13  # odd: a middle copy with enough of them on both sides

# name: layer over 4 channels, columns of output per column of input
LAYERS = {
    "conv3": (lambda: nn.Conv2d(4, 6, 3, padding=1), 1),
    "conv3 stride 2": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), 1 / 2),
    "conv7 stride 4, rows differ": (lambda: nn.Conv2d(4, 6, (3, 7), stride=(1, 4), padding=(0, 3)), 1 / 4),
    "conv4 stride 2": (lambda: nn.Conv2d(4, 6, 4, stride=2, padding=1), 1 / 2),
    "conv5 dilated, grouped": (lambda: nn.Conv2d(4, 8, 5, padding=4, dilation=2, groups=4), 1),
    "conv11 dilated beyond the circle": (lambda: nn.Conv2d(4, 6, (1, 11), padding=(0, 20), dilation=4), 1),
    "conv4 same": (lambda: nn.Conv2d(4, 6, 4, padding="same", dilation=(1, 2)), 1),
    "conv3 reflect": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), 1),
    "conv1": (lambda: nn.Conv2d(4, 6, 1), 1),
    "timm's same conv": (lambda: Conv2dSame(4, 6, 3, stride=2), 1 / 2),
    "timm's same conv5": (lambda: Conv2dSame(4, 6, 5, stride=1, dilation=2), 1),
    "max": (lambda: nn.MaxPool2d(3, 2, 1), 1 / 2),
    "max dilated": (lambda: nn.MaxPool2d(3, 4, 1, dilation=2), 1 / 4),
    "timm's same max": (lambda: MaxPool2dSame(3, 2), 1 / 2),
    "mean": (lambda: nn.AvgPool2d(3, 2, 1), 1 / 2),
    "mean of what is there": (lambda: nn.AvgPool2d((3, 5), 1, (1, 2), count_include_pad=False), 1),
    "timm's same mean": (lambda: AvgPool2dSame(3, 2), 1 / 2),
    "blur": (lambda: BlurPool2d(4, 3, 2), 1 / 2),
    "blur5 of any channels": (lambda: BlurPool2d(None, 5, 2), 1 / 2),
    "transposed 4": (lambda: nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1), 2),
    "transposed 2": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2), 2),
    "transposed 3": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), 2),
    "transposed 7": (lambda: nn.ConvTranspose2d(4, 6, 7, stride=2, padding=3, output_padding=1), 2),
    "transposed 5 stride 3": (lambda: nn.ConvTranspose2d(4, 6, 5, stride=3, padding=1, bias=False), 3),
    "transposed 3 dilated": (lambda: nn.ConvTranspose2d(4, 6, (1, 5), padding=(0, 4), dilation=(1, 2)), 1),
}
SEE_NO_EDGE = {"conv1", "transposed 2"}


def rolled(x, columns):
    return torch.roll(x, columns, -1)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("width", [4, 12])
def test_a_wrapped_layer_gives_what_it_gives_inside_the_periodic_picture(name, width):
    torch.manual_seed(0)
    make, ratio = LAYERS[name]
    layer = make().double()
    x = torch.randn(2, 4, 7, width, dtype=torch.float64)
    out = round(width * ratio)
    expected = layer(x.repeat(1, 1, 1, TURNS))[..., TURNS // 2 * out : (TURNS // 2 + 1) * out]
    plain = layer(x)
    assert plain.shape == expected.shape
    wrap(layer)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    if name not in SEE_NO_EDGE and width == 12:  # among few columns the largest may be the same
        assert not torch.allclose(plain, expected)
        assert type(layer) in WRAPPED.values()
    step = round(1 / ratio) if ratio < 1 else 1
    torch.testing.assert_close(layer(rolled(x, step)), rolled(layer(x), round(step * ratio)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda k, s, p: nn.Conv2d(2, 2, k, stride=s, padding=p),
        lambda k, s, p: nn.ConvTranspose2d(2, 2, k, stride=s, padding=p),
        lambda k, s, p: nn.MaxPool2d(k, s, min(p, k // 2)),
        lambda k, s, p: nn.MaxPool2d(k, s, min(p, k // 2), ceil_mode=True),
        lambda k, s, p: nn.AvgPool2d(k, s, min(p, k // 2), ceil_mode=True),
        lambda k, s, p: Conv2dSame(2, 2, k, stride=s),
        lambda k, s, p: MaxPool2dSame(k, s),
        lambda k, s, p: BlurPool2d(2, max(k, 2), s),
    ],
)
def test_the_shape_stays_whatever_is_padded(make):
    """Also even kernels, padding less or more than half of the kernel, and strides that do not divide the width."""
    for k, s, p, width in itertools.product((1, 2, 3, 4, 5), (1, 2, 3), (0, 1, 2, 3), (7, 8, 9)):
        layer = make(k, s, p)
        x = torch.randn(1, 2, 8, width)
        try:
            plain = layer(x)
        except RuntimeError:
            continue  # nothing is left of the map
        wrap(layer)
        assert layer(x).shape == plain.shape, (layer, width)


def test_columns_go_around_any_number_of_times():
    x = torch.arange(3.0).expand(1, 2, 2, 3)
    assert pad_columns(x, 0, 0) is x
    assert pad_columns(x, 1, 2)[0, 0, 0].tolist() == [2, 0, 1, 2, 0, 1]
    assert pad_columns(x, 0, 8)[0, 1, 1].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]
    assert pad_columns(x, 7, 1)[0, 0, 0].tolist() == [2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    laid_out = torch.randn(2, 4, 8, 16).contiguous(memory_format=torch.channels_last)
    assert pad_columns(laid_out, 1, 1).is_contiguous(memory_format=torch.channels_last)


def test_the_output_size_of_a_transposed_convolution_is_honoured():
    layer = nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1).double()
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64)
    expected = layer(x.repeat(1, 1, 1, 3), output_size=(10, 36))[..., 12:24]
    wrap(layer)
    torch.testing.assert_close(layer(x, output_size=(10, 12)), expected, rtol=1e-12, atol=1e-12)


class Decoder(nn.Module):
    """Of the kind this is for: maps resized to the finest and joined, a convolution, a transposed one."""

    def __init__(self, channels, classes=5):
        super().__init__()
        self.resize = Resize()
        self.conv = nn.Conv2d(sum(channels), 8, 3, padding=1)
        self.deconv = nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1)
        self.classify = nn.Conv2d(8, classes, 1)

    def forward(self, maps):
        size = maps[0].shape[-2:]
        x = self.conv(torch.cat([self.resize(one, size) for one in maps], 1)).relu()
        return self.classify(self.deconv(x).relu())


class Network(nn.Module):
    def __init__(self, features, channels):
        super().__init__()
        self.backbone, self.decoder = features, Decoder(channels)

    def forward(self, x):
        features = getattr(self.backbone, "features", self.backbone)
        return self.decoder(features(x))


def ours():
    backbone = build_backbone("resnet", "resnet_pico32")
    return Network(backbone, backbone.channels), 8


def of_timm(variant):
    backbone = timm.create_model(variant, features_only=True, out_indices=(1, 2, 3, 4))
    return Network(backbone, backbone.feature_info.channels()), 32


NETWORKS = {
    "resnet_pico32": ours,
    "resnet18": partial(of_timm, "resnet18"),
    "resnetblur18": partial(of_timm, "resnetblur18"),
    "tf_efficientnet": partial(of_timm, "tf_efficientnet_lite0"),
}


def network(name, dtype=torch.float64):
    torch.manual_seed(1)
    net, stride = NETWORKS[name]()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # as trained ones, which do not start from 0 and 1
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net.to(dtype).eval(), stride


@pytest.mark.parametrize("name", NETWORKS)
def test_a_wrapped_network_turns_with_the_panorama(name):
    net, stride = network(name)
    x = torch.randn(1, 3, 40, 4 * stride, dtype=torch.float64)
    with torch.no_grad():
        plain = net(x)
        factor = plain.shape[-1] / x.shape[-1]
        moved = [rolled(plain, round(columns * factor)) for columns in (stride, 2 * stride)]
        differs = [(net(rolled(x, columns)) - out).abs().max() for columns, out in zip((stride, 2 * stride), moved)]
        assert min(differs) > 1e-3  # the edges show
        assert wrap(net) == []
        out = net(x)
        assert out.shape == plain.shape
        for columns in (stride, 2 * stride, -stride):
            turned = net(rolled(x, columns))
            assert (turned - rolled(out, round(columns * factor))).abs().max() < 1e-10


def test_single_precision_turns_to_single_precision():
    net, stride = network("resnet_pico32", torch.float32)
    wrap(net)
    x = torch.randn(1, 3, 40, 8 * stride)
    with torch.no_grad():
        torch.testing.assert_close(net(rolled(x, 4 * stride)), rolled(net(x), 8 * stride), rtol=0, atol=1e-4)
        net, x = net.bfloat16(), x.bfloat16()
        assert torch.isfinite(net(x)).all()


def test_wrapping_keeps_parameters_copies_and_pickles():
    net, stride = network("resnetblur18")
    x = torch.randn(1, 3, 64, 2 * stride, dtype=torch.float64)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    wrap(net)
    types = [type(module) for module in net.modules()]
    wrap(net)  # again
    assert [type(module) for module in net.modules()] == types
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with torch.no_grad():
        expected = net(x)
        for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert [type(module) for module in twin.modules()] == types
            assert torch.equal(twin(x), expected)


def test_wrapped_layers_compile_into_one_graph():
    names = ("conv3 stride 2", "max", "blur", "mean", "transposed 4", "timm's same conv")
    net = nn.Sequential(*(nn.Sequential(LAYERS[name][0](), nn.LazyConv2d(4, 1)) for name in names))
    x = torch.randn(1, 4, 32, 64)
    net(x)
    wrap(net)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["conv3 stride 2", "conv11 dilated beyond the circle", "transposed 4", "mean"])
def test_gradients_go_around(name):
    layer = LAYERS[name][0]().double()
    wrap(layer)
    x = torch.randn(1, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def test_what_cannot_be_wrapped_is_named():
    class Own(nn.Module):
        """Pads by itself, and has a layer of a known kind below it."""

        def __init__(self):
            super().__init__()
            self.padding = (1, 1)
            self.wraps = False
            self.offsets = nn.Conv2d(4, 4, 3, padding=1)

    net = nn.Sequential()
    net.add_module("own", Own())
    net.add_module("rotated", AdaptiveRotatedConv(nn.Conv2d(4, 4, 3, padding=1, bias=False)))
    net.add_module("inner", nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Upsample(scale_factor=2)))
    net.add_module("places", nn.MaxPool2d(3, 1, 1, return_indices=True))
    net.add_module("pad", nn.ZeroPad2d((1, 0, 0, 0)))
    net.add_module("rows", nn.ZeroPad2d((0, 0, 1, 1)))
    net.add_module("unfold", nn.Unfold(3, padding=1))
    net.add_module("channels", nn.Conv1d(1, 1, 3, padding=1))  # over channels, as ECA has it
    net.add_module("resize", Resize())
    assert wrap(net) == ["rotated", "inner.0", "places", "pad", "unfold"]
    assert net.own.wraps
    assert net.resize.wraps
    assert type(net.own.offsets) is WRAPPED[nn.Conv2d]
    assert type(net.rotated.depthwise) is WRAPPED[nn.Conv2d]
    assert wrap(net) == ["rotated", "inner.0", "places", "pad", "unfold"]
    assert wrap(nn.ZeroPad2d(1)) == [""]


def test_attentions_stay_as_they_are():
    """Focused linear attention reads the padding of its convolution and does not call it."""
    attention = partial(FocusedLinear, table_size=8)
    backbone = build_backbone("maxvit", "maxvit_pico32", attention=attention)
    inside = [module for _, one in backbone.installed() for module in one.modules()]
    types = [type(module) for module in inside]
    convolutions = sum(type(module) is nn.Conv2d for module in backbone.modules())
    assert wrap(backbone) == []
    assert [type(module) for module in inside] == types
    assert sum(type(module) is nn.Conv2d for module in backbone.modules()) < convolutions
    assert [tuple(one.shape[-2:]) for one in backbone.features(torch.randn(1, 3, 32, 64))] == [(8, 16), (4, 8)]
