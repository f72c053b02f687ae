"""The decoders over maps of many kinds: which they use, sizes, gradients, small batches, precision, learning."""

import inspect
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from vantage.tasks.segmentation.auxiliary import AuxiliaryHead
from vantage.tasks.segmentation.decoders.fcn import FCN
from vantage.tasks.segmentation.decoders.fpn import SemanticFPN
from vantage.tasks.segmentation.decoders.layers import BatchNorm, SeparableConvNormAct, choose_levels, group_norm
from vantage.tasks.segmentation.decoders.segformer import SegFormer
from vantage.tasks.segmentation.decoders.unet import UNet
from vantage.tasks.segmentation.decoders.upernet import UPerNet

from .backbones import STRIDES, channels_of, random_maps

CONFIGS = Path(__file__).parents[3] / "configs" / "task" / "decoder"
SMALL = {"width", "pyramid_width", "widths"}  # smaller than as published
DEEPER = {("fpn", "num_convs")}  # small backbones need it
DECODERS = {
    "fcn": partial(FCN, width=8),
    "fpn": partial(SemanticFPN, pyramid_width=8, width=8),
    "upernet": partial(UPerNet, width=8),
    "segformer": partial(SegFormer, width=8),
    "unet": partial(UNet, widths=(12, 8, 8, 6, 4)),
    "auxiliary": partial(AuxiliaryHead, width=8),
}
PYRAMIDS = ("fpn", "upernet", "segformer")
# which maps take part, and the stride of the logits
LEVELS = {
    "vit": {"unet": ([0], 1), "auxiliary": ([0], 16), "fcn": ([0], 16), "pyramid": ([0], 16)},
    "pico": {"unet": ([0, 1], 1), "auxiliary": ([0], 4), "fcn": ([1], 8), "pyramid": ([0, 1], 4)},
    "swin": {"unet": ([0, 1, 2, 3], 1), "auxiliary": ([2], 16), "fcn": ([3], 32), "pyramid": ([0, 1, 2, 3], 4)},
    "resnet": {"unet": ([0, 1, 2, 3, 4], 1), "auxiliary": ([3], 16), "fcn": ([4], 32), "pyramid": ([1, 2, 3, 4], 4)},
    "resnet_pico32": {"unet": ([1, 2, 3, 4], 1), "auxiliary": ([3], 4), "fcn": ([4], 8), "pyramid": ([3, 4], 4)},
}


def make(name, strides, num_classes=5, **options):
    torch.manual_seed(0)
    return DECODERS[name](channels_of(strides), strides, num_classes=num_classes, **options)


@pytest.mark.parametrize("size", [(64, 96), (50, 66)])  # the second: maps of 13x17, 7x9, 4x5, 2x3
@pytest.mark.parametrize("backbone", STRIDES)
@pytest.mark.parametrize("name", DECODERS)
def test_logits_have_their_size_and_gradients_reach_every_parameter_and_the_chosen_maps(name, backbone, size):
    strides = STRIDES[backbone]
    decoder = make(name, strides)
    maps = [one.requires_grad_() for one in random_maps(strides, size)]
    logits = decoder(maps)
    used, stride = LEVELS[backbone]["pyramid" if name in PYRAMIDS else name]
    finest = [side * strides[used[0]] // stride for side in maps[used[0]].shape[-2:]]
    assert tuple(logits.shape) == (2, 5, *finest)
    logits.square().sum().backward()
    assert [index for index, one in enumerate(maps) if one.grad is not None] == used
    assert all(maps[index].grad.abs().sum() > 0 for index in used)
    for key, parameter in decoder.named_parameters():
        assert parameter.grad is not None, f"distributed training would stop: no gradient for {key}"
        assert parameter.grad.isfinite().all(), key
        assert parameter.dim() == 1 or parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("size", [(64, 96), (32, 32)])  # the second: a last map of 1x1
@pytest.mark.parametrize("name", DECODERS)
def test_a_batch_of_one_picture_trains(name, size):
    decoder = make(name, [4, 8, 16, 32])
    logits = decoder(random_maps([4, 8, 16, 32], size, batch=1))
    logits.square().sum().backward()
    assert logits.isfinite().all()
    *_, classifier_bias = decoder.parameters()
    assert classifier_bias.grad.abs().sum() > 0


def test_batch_norm_is_torchs_but_for_one_value_per_channel():
    torch.manual_seed(0)
    ours, theirs = BatchNorm(3), nn.BatchNorm2d(3)
    for x in torch.randn(3, 2, 3, 4, 5):
        torch.testing.assert_close(ours(x), theirs(x))
    before = ours.running_var.clone()
    alone = torch.randn(1, 3, 1, 1)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        theirs(alone)
    torch.testing.assert_close(ours(alone), theirs.eval()(alone))
    assert torch.equal(ours.running_var, before)
    torch.testing.assert_close(ours.eval()(x), theirs(x))


def test_a_group_has_four_channels_or_the_whole_width():
    assert [group_norm(width).num_groups for width in (256, 128, 64, 48, 18, 3)] == [32, 32, 16, 4, 2, 1]


def test_a_separable_convolution_mixes_pixels_and_channels_apart():
    block = SeparableConvNormAct(6, 10, kernel_size=5)
    assert sum(parameter.numel() for parameter in block.parameters()) == 6 * 25 + 2 * 6 + 6 * 10 + 2 * 10
    assert tuple(block(torch.randn(2, 6, 7, 9)).shape) == (2, 10, 7, 9)


@pytest.mark.parametrize("name", DECODERS)
def test_bfloat16_autocast_gives_about_the_same_logits(name):
    strides = STRIDES["swin"]
    decoder = make(name, strides).eval()
    maps = random_maps(strides, (50, 66))
    expected = decoder(maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = decoder(maps)
        logits.float().square().sum().backward()
    assert logits.dtype == torch.bfloat16
    assert (logits - expected).abs().max() < 0.04 * expected.abs().max()
    assert all(parameter.grad.isfinite().all() for parameter in decoder.parameters())


@pytest.mark.parametrize("name", ["upernet", "unet"])
def test_compiled_it_gives_the_same_values(name):
    strides = STRIDES["pico"]
    decoder = make(name, strides, dropout=0.0)
    maps = random_maps(strides, (25, 35))
    compiled = torch.compile(decoder, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(maps), decoder(maps))


@pytest.mark.parametrize("name", DECODERS)
def test_a_batch_is_learned_by_heart(name):
    strides = STRIDES["pico"]
    decoder = make(name, strides, num_classes=3, dropout=0.0)
    maps = random_maps(strides, (32, 40))
    (finest, *_), stride = LEVELS["pico"]["pyramid" if name in PYRAMIDS else name]
    blocks = torch.ones(strides[finest] // stride, strides[finest] // stride, dtype=torch.int64)
    classes = torch.kron(maps[finest][:, :3].argmax(1), blocks)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.02)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = F.cross_entropy(decoder(maps), classes)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("name", ["fcn", "fpn"])
def test_moving_the_maps_by_a_cell_of_the_coarsest_moves_the_logits(name):
    """What moves lies in the middle of a constant map: borders see none of it, and group norm the same values."""
    strides = [4, 8, 16]
    decoder = make(name, strides).eval()
    stride = LEVELS["swin"]["pyramid"][1] if name == "fpn" else 16
    middles = random_maps(strides, (64, 64))
    logits = []
    for right, down in ((8, 8), (9, 10)):
        maps = []
        for one, s in zip(middles, strides):
            whole = torch.ones(*one.shape[:2], 352 // s, 352 // s)
            y, x = down * 16 // s, right * 16 // s
            whole[..., y : y + one.shape[-2], x : x + one.shape[-1]] = one
            maps.append(whole)
        logits.append(decoder(maps))
    cell = 16 // stride
    moved = logits[0].roll((2 * cell, cell), (-2, -1))
    interior = (..., slice(6 * cell, -6 * cell), slice(6 * cell, -6 * cell))
    torch.testing.assert_close(logits[1][interior], moved[interior], rtol=1e-4, atol=1e-4 * moved.std().item())
    assert (logits[1] - logits[0]).abs().max() > 0.1 * moved.std()


def test_segformer_on_a_panorama_turns_with_it():
    strides = [4, 8, 16]
    decoder = make("segformer", strides).eval()
    decoder.resize.wraps = True
    maps = random_maps(strides, (32, 64))
    turned = decoder([one.roll(16 // stride, -1) for one, stride in zip(maps, strides)])
    torch.testing.assert_close(turned, decoder(maps).roll(4, -1))


def test_of_equal_strides_the_last_map_counts_and_fine_ones_only_where_there_are_no_others():
    assert choose_levels([1, 1, 2, 4, 8]) == [1, 2, 3, 4]
    assert choose_levels([1, 1, 2, 4, 8], finest_stride=4) == [3, 4]
    assert choose_levels([1, 1, 2], finest_stride=4) == [1, 2]
    assert choose_levels([14], finest_stride=16) == [0]


@pytest.mark.parametrize(
    ("strides", "to_stride", "widths", "size"),
    [
        ([2, 4, 8, 16, 32], 1, [10, 8, 6, 4, 2], (64, 96)),
        ([4, 8], 1, [6, 4, 2], (64, 96)),
        ([4, 8, 16, 32], 8, [4, 2], (8, 12)),
        ([2, 4, 8], 4, [2], (16, 24)),
        ([16], 16, [], (4, 6)),
        ([14], 4, [2], (10, 14)),  # 7 is as near as doubling comes to 4 without passing it
    ],
)
def test_unet_goes_to_the_stride_it_is_given_with_the_last_of_its_widths(strides, to_stride, widths, size):
    decoder = UNet(channels_of(strides), strides, num_classes=3, widths=[10, 8, 6, 4, 2], to_stride=to_stride)
    assert [step[1].conv.out_channels for step in decoder.steps] == widths
    assert tuple(decoder(random_maps(strides, (64, 96))).shape[-2:]) == size


def test_what_cannot_be_built_is_refused():
    for build, sentence in {
        partial(FCN, [8], [16], level=-2): r"level is -2 but .* \[16\] give 1 level\(s\); use -1 to 0",
        partial(FCN, [8], [16], num_convs=0): "num_convs is 0; use 1 or more",
        partial(UNet, [8], [16], widths=[8, 8]): r"widths \[8, 8\] are 2, but .* 4 steps; give 4 widths or a coarser",
        partial(UNet, [8], [16], to_stride=0): "to_stride is 0; use 1",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            build(num_classes=3)


def test_the_auxiliary_head_takes_the_nearest_level_there_is():
    for strides, level, index in (([16], -2, 0), ([4, 8], 5, 1), ([4, 8, 16, 32], -9, 0), ([4, 8, 16, 32], -2, 2)):
        assert AuxiliaryHead(channels_of(strides), strides, num_classes=3, level=level, width=8).fcn.level == index


def test_fcn_sees_its_map_past_the_convolutions_where_it_is_concatenated():
    x = torch.randn(2, 4, 7, 9)
    for concat_input in (True, False):
        decoder = FCN([4], [16], num_classes=3, width=8, concat_input=concat_input).eval()
        decoder.convs[-1].norm.weight.data.zero_()
        over_the_map = decoder([x]).std((-2, -1))
        assert (over_the_map > 1e-4).all() if concat_input else (over_the_map < 1e-6).all()


@pytest.mark.parametrize("name", [name for name in DECODERS if name != "auxiliary"])
def test_a_config_repeats_its_signature_and_builds_over_every_backbone(name):
    config = OmegaConf.load(CONFIGS / f"{name}.yaml")
    node = OmegaConf.to_container(config)
    parameters = inspect.signature(get_class(node.pop("_target_"))).parameters
    assert node.pop("_partial_")
    assert set(node) == set(parameters) - {"channels", "backbone_strides", "num_classes"}
    for key in node.keys() - SMALL:
        default = parameters[key].default
        if (name, key) not in DEEPER:
            assert node[key] == (list(default) if isinstance(default, tuple) else default), key
    for strides in STRIDES.values():
        decoder = instantiate(config)(channels_of(strides), strides, num_classes=3)
        assert decoder(random_maps(strides, (32, 48))).isfinite().all()
