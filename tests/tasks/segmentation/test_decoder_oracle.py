"""The decoders against segmentation_models_pytorch (SMP), torchvision and the SegFormer paper.

SMP is no dependency of this project: what is recorded here was printed by SMP 0.6.0 (timm 1.0.31, torch 2.15), its
decoders at their default widths over the maps of its resnet34, or with the weights of `fill` copied into them.
"""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.segmentation.fcn import FCNHead

from vantage.tasks.segmentation.decoders.fcn import FCN
from vantage.tasks.segmentation.decoders.fpn import SemanticFPN
from vantage.tasks.segmentation.decoders.segformer import SegFormer
from vantage.tasks.segmentation.decoders.unet import UNet
from vantage.tasks.segmentation.decoders.upernet import UPerNet

RESNET34 = [64, 64, 128, 256, 512]
STRIDES = [2, 4, 8, 16, 32]
CHANNELS = [4, 6, 8, 10, 12]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def fill(module: nn.Module) -> nn.Module:
    """Weights anyone can write down: sin(0.37 j + i) over the elements j of parameter i, scaled by its fan-in."""
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            wave = torch.sin(0.37 * torch.arange(parameter.numel(), dtype=torch.float64) + index)
            values = wave * parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.5 + 0.5 * wave.abs()
            parameter.copy_(values.view(parameter.shape))
    return module


def waves(channels: list[int], strides: list[int]) -> list[Tensor]:
    """Maps of two pictures of 64x96."""
    shapes = [(2, width, 64 // stride, 96 // stride) for width, stride in zip(channels, strides)]
    elements = [torch.arange(torch.Size(shape).numel(), dtype=torch.float64) for shape in shapes]
    return [torch.sin(0.11 * one.pow(1.1)).float().view(shape) for one, shape in zip(elements, shapes)]


def numbers(logits: Tensor) -> list[float]:
    """Mean magnitude, and the three classes at a corner, at an edge and inside of the second picture."""
    places = [logits[1, :, row, column] for row, column in ((0, 0), (-3, -1), (5, 7))]
    return [round(value, 4) for value in torch.cat([logits.abs().mean()[None], *places]).tolist()]


@pytest.mark.parametrize(
    ("build", "published"),
    [
        (partial(UNet, RESNET34, STRIDES, num_classes=21), 3_151_552),
        (partial(SemanticFPN, RESNET34, STRIDES, num_classes=21), 1_870_592),
        # SMP has a LayerNorm on every map of the backbone, which the paper has not
        (partial(UPerNet, RESNET34, STRIDES, num_classes=21, width=256), 8_314_752 - 2 * sum(RESNET34[1:])),
        # SMP's takes a ResNet's map of stride 2 along, and reduces it to stride 4
        (partial(SegFormer, RESNET34, STRIDES, num_classes=21, finest_stride=2), 591_616),
        (partial(SegFormer, [32, 64, 160, 256], [4, 8, 16, 32], num_classes=21), 394_752),  # over its mit_b0
    ],
    ids=["unet", "fpn", "upernet", "segformer", "segformer-mit_b0"],
)
def test_parameters_but_for_the_classifier_are_as_many_as_smps(build, published):
    with torch.device("meta"):
        decoder = build()
    assert count(decoder) - count(decoder.classifier) == published


@pytest.mark.parametrize(
    ("channels", "width", "millions"),
    [([32, 64, 160, 256], 256, 0.4), ([64, 128, 320, 512], 256, 0.6), ([64, 128, 320, 512], 768, 3.3)],
    ids=["B0", "B1", "B2-B5"],
)
def test_segformer_has_the_decoder_parameters_of_the_papers_table_1(channels, width, millions):
    with torch.device("meta"):
        decoder = SegFormer(channels, [4, 8, 16, 32], num_classes=150, width=width)
    assert round(count(decoder) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        # SMP with decoder_interpolation="bilinear"
        (
            partial(UNet, CHANNELS, STRIDES, num_classes=3, widths=[16, 12, 8, 8, 4], dropout=0.0),
            [1.4796, -0.3242, 1.2486, 1.817, -0.7637, 1.859, 2.3672, -0.6304, 1.8259, 2.228],
        ),
        # likewise, and its branches upsampled with half-pixel centres instead of aligned corners
        (
            partial(SemanticFPN, CHANNELS, STRIDES, num_classes=3, pyramid_width=16, dropout=0.0),
            [0.9447, -0.3653, 1.995, 0.1064, -0.4462, 2.0566, 0.0675, -0.5677, 2.2062, -0.1018],
        ),
        # SMP without its LayerNorms on the maps, its single bin with a norm over the picture's channels
        (
            partial(UPerNet, CHANNELS, STRIDES, num_classes=3, width=16, dropout=0.0),
            [1.066, 1.6674, 1.1155, 0.5234, 2.0447, 1.4463, 0.7646, -0.1584, -0.283, -0.2654],
        ),
        # SMP over an encoder without a map of stride 2
        (
            partial(SegFormer, CHANNELS, STRIDES, num_classes=3, width=16, dropout=0.0),
            [1.1999, -1.2072, -1.7809, -2.0259, 2.2967, 1.9716, 1.4858, 0.9858, 0.7713, 0.5526],
        ),
    ],
    ids=["unet", "fpn", "upernet", "segformer"],
)
def test_with_the_same_weights_training_logits_are_smps(build, expected):
    assert numbers(fill(build())(waves(CHANNELS, STRIDES))) == pytest.approx(expected, abs=3e-4)


@pytest.mark.parametrize("training", [True, False])
def test_fcn_is_torchvisions_head(training):
    torch.manual_seed(0)
    theirs = FCNHead(32, 5).train(training)
    ours = FCN([16, 32], [8, 16], num_classes=5, width=8, num_convs=1, concat_input=False, dropout=0.0).train(training)
    theirs[3].p = 0.0
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        mine.data.copy_(other.data)
    x = torch.randn(2, 32, 7, 9)
    torch.testing.assert_close(ours([torch.zeros(2, 16, 14, 18), x]), theirs(x))
