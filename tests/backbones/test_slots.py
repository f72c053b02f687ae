"""Which slots a model has, which are chosen, what an attention is built with, and what is refused."""

import logging
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf

from vantage.attention.neighborhood import Neighborhood
from vantage.attention.softmax import Softmax
from vantage.attention.window import Window
from vantage.backbones.build import build_backbone, check_variant, variants
from vantage.backbones.slots import Slot
from vantage.position.rel_bias import RelBias

from .families import FAMILIES, LocalMean, each_family, images, small, softmax


def roles(model, **conditions):
    return [slot.role for slot in model.slots() if all(getattr(slot, k) == v for k, v in conditions.items())]


def test_slots_of_each_family():
    assert roles(small("maxvit")) == ["local", "global"] * 2
    assert roles(small("vit")) == ["full"] * 4
    assert roles(small("swin")) == ["local"] * 5
    assert [slot.shifted for slot in small("swin").slots()] == [False, True, False, True, False]
    assert roles(small("davit"), default=True) == ["local"] * 2
    assert roles(small("davit"), default=False) == ["global"] * 2
    assert roles(small("pvt_v2")) == ["full"] * 4
    assert roles(small("twins")) == ["local", "global"] * 2
    assert roles(build_backbone("twins", "twins_pcpvt_small"), default=True) == ["full"] * 16
    resnet = build_backbone("resnet", "resnet50")
    assert [slot.name for slot in resnet.slots() if slot.default] == [f"layer4.{i}.conv2" for i in range(3)]
    assert len(resnet.slots()) == 16
    # the first mixer of the last stage sits before the stride, as in BoTNet
    assert [slot.stride for slot in resnet.slots()[-3:]] == [16, 32, 32]


def test_a_slot_says_what_it_is():
    assert small("maxvit").slots()[1] == Slot(
        name="stages.0.blocks.0.attn_grid.attn", role="global", stage=0, dim=32, num_heads=2, stride=4
    )


@each_family
def test_slots_describe_the_map_they_get(family):
    """An attention in every slot sees the dim and, at the slot's stride, the size that the slot announces."""
    model = small(family, softmax, slots="all").eval()
    seen = {}
    for slot, module in model.installed():
        module.register_forward_pre_hook(lambda _, args, slot=slot: seen.__setitem__(slot, args[0].shape))
    model(images((44, 100)))
    assert set(seen) == set(model.slots())
    for slot, shape in seen.items():
        assert shape == (2, -(-44 // slot.stride), -(-100 // slot.stride), slot.dim)
        assert slot.dim % slot.num_heads == 0


def test_choosing_slots():
    def chosen(**keywords):
        return small("davit", softmax, **keywords).report.swapped

    spatial, channel = [f"stages.{i}.blocks.0.0.attn" for i in (0, 1)], [f"stages.{i}.blocks.0.1.attn" for i in (0, 1)]
    assert chosen() == spatial
    assert sorted(chosen(slots="all")) == sorted(spatial + channel)
    assert chosen(slots=["global"]) == channel
    assert chosen(slots=["stages.1.*"]) == [spatial[1], channel[1]]
    assert chosen(slots=["stages.0.blocks.0.0.attn", "global"]) == [spatial[0], *channel]
    with pytest.raises(ValueError, match=r"model.slots: 'stages.7.\*' matches no slot"):
        chosen(slots=["stages.7.*"])


def test_unsupported_roles_stay_native(caplog):
    with caplog.at_level(logging.INFO, logger="vantage"):
        model = small("maxvit", partial(LocalMean))
    assert [slot.role for slot, _ in model.installed()] == ["local", "local"]
    assert model.report.native == [f"stages.{stage}.blocks.0.attn_grid.attn" for stage in (0, 1)]
    assert "2 slots stay native (stages.0.blocks.0.attn_grid.attn" in caplog.text
    assert model(images((33, 47))).shape == (2, 5)


@pytest.mark.parametrize("family", ["vit", "pvt_v2", "resnet"])
def test_no_slot_to_fill_is_an_error(family):
    with pytest.raises(ValueError, match=rf"fills local slots, but those chosen in {family}_pico32 are full"):
        small(family, partial(LocalMean))


def test_a_vit_of_other_blocks_has_no_slot():
    with pytest.raises(ValueError, match=r"vit_small_patch16_18x2_224 has no slot"):
        build_backbone("vit", "vit_small_patch16_18x2_224", attention=softmax)


def test_keywords_per_role():
    config = OmegaConf.create(
        {"roles": {"global": {"window_size": [3, 2]}, "local": {"window_size": 5}}, "clamp": True}
    )
    model = small("maxvit", partial(Window, **config))
    assert [module.window_size for _, module in model.installed()] == [(5, 5), (3, 2)] * 2
    attention = partial(Window, window_size=4, roles={"local": {"window_size": 2}, "shifted": {"shift": "half"}})
    model = small("swin", attention)
    assert [module.shift for _, module in model.installed()] == [(0, 0), "half", (0, 0), "half", (0, 0)]
    assert {module.window_size for _, module in model.installed()} == {(2, 2)}
    assert attention.keywords["roles"]  # the partial is used again, by the next model
    model = small("maxvit", partial(Neighborhood, kernel_size=3, roles={"global": {"dilation": "span"}}))
    assert [module.dilation for _, module in model.installed()][1] == "span"


def test_role_keywords_are_checked():
    with pytest.raises(ValueError, match=r"attention.roles.globl: there is no such role"):
        small("maxvit", partial(Window, roles={"globl": {"window_size": 3}}))
    with pytest.raises(ValueError, match=r"attention.roles.global.size: Window takes no 'size'; it takes .*size"):
        small("maxvit", partial(Window, roles={"global": {"size": 3}}))


def test_errors_of_a_slot_name_it():
    name = r"slot stages.0.blocks.0.attn_block.attn \(local, dim 32, 2 heads\)"
    with pytest.raises(ValueError, match=f"^{name}: .*4 is even"):
        small("maxvit", partial(LocalMean, kernel_size=4))
    with pytest.raises(ValueError, match=r"^slot .*cannot take position=rel_bias"):
        small("maxvit", partial(LocalMean), position=partial(RelBias))


def test_a_position_is_made_for_each_slot():
    model = small("maxvit", softmax, position=partial(RelBias))
    positions = [module.position for _, module in model.installed()]
    assert len({id(position) for position in positions}) == 4
    assert [(p.head_dim, p.num_heads) for p in positions] == [(16, 2), (16, 2), (16, 4), (16, 4)]
    assert all(".position." in name for name in model.report.new)
    assert len(model.report.new) == 4


def test_native_takes_no_position_and_no_plug():
    with pytest.raises(ValueError, match=r"position=rel_bias needs an attention that takes one"):
        small("maxvit", position=partial(RelBias))
    with pytest.raises(ValueError, match=r"plug=families finds no place in model=maxvit; use model=resnet"):
        small("maxvit", plug=partial(LocalMean))
    assert small("maxvit", {}, position={}, plug={}).installed() == []


@pytest.mark.parametrize(
    ("family", "variant", "sentence"),
    [
        ("maxvti", "x", "model.family=maxvti is unknown; the nearest are maxvit"),
        ("maxvit", "maxvit_pico23", "no maxvit variant; the nearest are maxvit_pico32"),
        ("maxvit", "coatnet_0_rw_224", "coatnet_0_rw_224 is not supported: CoAtNet's attention"),
        ("maxvit", "maxvit_tiny_pm_256", "parallel partitions"),
        ("resnet", "vit_tiny_patch16_224", "no resnet variant"),
        ("vit", "deit_tiny_distilled_patch16_224", "distillation token"),
        ("swin", "swin_tiny_patch4_window7_224.ms_in22", "no such weights; the nearest are swin_tiny_patch4_window7"),
    ],
)
def test_unknown_variants(family, variant, sentence):
    with pytest.raises(ValueError, match=r"^model\.") as error:
        check_variant(family, variant)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_known_variants():
    for family in FAMILIES:
        assert variants(family)[:2] == [f"{family}_pico32", f"{family}_nano32"]
        check_variant(family, f"{family}_nano32")
    check_variant("swin", "swin_tiny_patch4_window7_224.ms_in22k")
    check_variant("maxvit", "maxxvitv2_nano_rw_256")


@pytest.mark.parametrize(("size", "low", "high"), [("pico32", 0.15, 0.26), ("nano32", 0.7, 0.95)])
@each_family
def test_small_variants_are_small(family, size, low, high):
    model = build_backbone(family, f"{family}_{size}", num_classes=10)
    assert low < sum(parameter.numel() for parameter in model.parameters()) / 1e6 < high


def test_bottleneck_mixes_before_it_strides():
    """As in BoTNet: the mixer sees the map at full size, then 2x2 means, the last of them over what is left."""
    model = build_backbone("resnet", "resnet_nano32", attention=partial(Softmax), slots=["layer3.0.conv2"])
    mixer = model.net.layer3[0].conv2
    x = torch.randn(1, 96, 5, 7)
    out = mixer(x)
    assert out.shape == (1, 96, 3, 4)
    full = mixer.attn(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(out[:, :, 1, 2], full[:, :, 2:4, 4:6].mean((2, 3)))
    torch.testing.assert_close(out[:, :, 2, 3], full[:, :, 4, 6])
