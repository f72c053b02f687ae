"""attention=native is timm's model: same names, same outputs and gradients to the last bit, at the sizes timm takes."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import maxxvit

from vantage.backbones.adapters.maxvit import PaddedPartition
from vantage.backbones.build import build_backbone

from .families import FAMILIES, SIZES, gradients, images, small

# variant, image sizes, keywords of timm's model
CASES = {
    "maxvit": [
        ("maxvit_pico32", [(32, 32), (64, 96)], {}),
        *([("test_maxvit", [(128, 128)], {"img_size": 128})] if timm.is_model("test_maxvit") else []),
        ("maxvit_rmlp_pico_rw_256", [(128, 160)], {"img_size": (128, 160)}),
    ],
    "vit": [
        ("vit_pico32", [(32, 32)], {}),
        ("test_vit", [(96, 96), (32, 64)], {"img_size": 96}),  # class token, dynamic size
        ("test_vit2", [(64, 32)], {"img_size": (64, 32)}),  # register token, layer scale
        ("test_vit3", [(64, 64)], {"img_size": 64}),  # attention pooling over all tokens
    ],
    "swin": [
        ("swin_pico32", [(32, 32)], {}),
        ("swin_s3_tiny_224", [(64, 64)], {"img_size": 64}),
    ],
    "davit": [("davit_pico32", SIZES, {}), ("davit_tiny", [(33, 47)], {})],
    "pvt_v2": [("pvt_v2_pico32", SIZES, {}), ("pvt_v2_b0", SIZES, {}), ("pvt_v2_b2_li", [(64, 64)], {})],
    "twins": [("twins_pico32", [(32, 32), (64, 36)], {}), ("twins_svt_small", [(64, 64)], {"img_size": 64})],
    "resnet": [
        ("resnet_pico32", SIZES, {}),
        ("resnet_nano32", SIZES, {}),
        ("test_resnet", SIZES, {}),
        ("resnetaa34d", [(64, 64)], {}),
    ],
}


@pytest.mark.parametrize(
    ("family", "variant", "size", "keywords"),
    [(family, v, size, kw) for family in FAMILIES for v, sizes, kw in CASES[family] for size in sizes],
)
def test_equals_timm(family, variant, size, keywords):
    timms = timm.create_model(variant, num_classes=5, drop_path_rate=0.0, **keywords)
    ours = build_backbone(family, variant, num_classes=5, img_size=keywords.get("img_size"))
    ours.net.load_state_dict(timms.state_dict(), strict=True)
    x = images(size)
    for mode in (False, True):  # with the statistics of the batch too
        expected, actual = gradients(timms.train(mode), x), gradients(ours.net.train(mode), x)
        assert expected.keys() == actual.keys()
        for name, value in expected.items():
            assert torch.equal(value, actual[name]), f"{name}, train={mode}"
        timms.zero_grad()
        ours.zero_grad()
    torch.testing.assert_close(ours.eval()(x), timms.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("partition", ["block", "grid"])
@pytest.mark.parametrize("head_first", [False, True])
@pytest.mark.parametrize("rel_pos_type", ["bias", "bias_tf", "mlp", ""])
def test_maxvit_masks_its_padding(partition, head_first, rel_pos_type):
    """A 5x7 map under a window of 4: each query attends to the tokens of its window or grid that the map has."""
    torch.manual_seed(0)
    cfg = maxxvit.MaxxVitTransformerCfg(
        dim_head=8, window_size=(4, 4), grid_size=(4, 4), head_first=head_first, rel_pos_type=rel_pos_type
    )
    block = maxxvit.PartitionAttentionCl(16, partition, cfg).double().eval()  # its bias MLP has dropout
    block.__class__ = PaddedPartition
    if rel_pos_type:
        for table in block.attn.rel_pos.parameters():
            torch.nn.init.normal_(table)
    height, width, heads = 5, 7, 2
    x = torch.randn(2, height, width, 16, dtype=torch.float64)
    out = block._partition_attn(x)

    attn = block.attn
    if head_first:
        q, k, v = attn.qkv(x).view(2, height, width, heads, 24).chunk(3, dim=-1)
    else:
        q, k, v = attn.qkv(x).view(2, height, width, 3, heads, 8).unbind(3)
    bias = attn.rel_pos.get_bias() if rel_pos_type else torch.zeros(heads, 16, 16)
    bias = bias.view(heads, 16, 16).double()
    cells = (-(-height // 4), -(-width // 4))

    def place(y: int, x: int) -> tuple[tuple[int, int], int]:
        """(group, index in the group)"""
        if partition == "block":
            return (y // 4, x // 4), y % 4 * 4 + x % 4
        return (y % cells[0], x % cells[1]), y // cells[0] * 4 + x // cells[1]

    tokens = [(y, x) for y in range(height) for x in range(width)]
    expected = torch.zeros(2, height, width, heads, 8, dtype=torch.float64)
    for query in tokens:
        group, row = place(*query)
        keys = [key for key in tokens if place(*key)[0] == group]
        for head in range(heads):
            logits = torch.stack([(q[:, *query, head] * k[:, *key, head]).sum(-1) * 8**-0.5 for key in keys], -1)
            logits = logits + torch.stack([bias[head, row, place(*key)[1]] for key in keys])
            values = torch.stack([v[:, *key, head] for key in keys], 1)
            expected[:, *query, head] = (F.softmax(logits, -1)[..., None] * values).sum(1)
    torch.testing.assert_close(out, attn.proj(expected.flatten(-2)), rtol=1e-6, atol=1e-6)


def test_twins_sees_the_border_that_timm_drops():
    model = small("twins").eval()
    x = images((33, 47)).requires_grad_()
    model(x).sum().backward()
    assert x.grad[:, :, -1].abs().sum() > 0
    assert x.grad[..., -1].abs().sum() > 0
