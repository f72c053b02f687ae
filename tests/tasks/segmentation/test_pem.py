"""PEM: prototypes by loops, the pixel decoder's layers at the start, any backbone's maps, what `legacy` changes."""

import math

import pytest
import torch
from torch.nn import functional as F

from vantage.tasks.segmentation.decoders.pem import PEM, Outputs
from vantage.tasks.segmentation.decoders.pem_pixel_decoder import ContextGate, DeformBlock, PixelDecoder, Upsample
from vantage.tasks.segmentation.decoders.prototype_attention import PrototypeAttention, prototypes, sine_position
from vantage.tasks.segmentation.wrap import wrap

from .backbones import STRIDES, channels_of, random_maps

SMALL = {"width": 8, "dim": 16, "num_queries": 5, "ffn_dim": 16, "num_points": 64}


def random_attention(seed=0, batch=2, pixels=12, queries=5, dim=16):
    """features, queries, masked; query 3 of the first picture sees nothing, the second picture's see everything."""
    torch.manual_seed(seed)
    masked = torch.rand(batch, queries, pixels) < 0.6
    masked[0, 3], masked[1] = True, False
    return torch.randn(batch, pixels, dim), torch.randn(batch, queries, dim), masked


@pytest.mark.parametrize("num_heads", [1, 4])
def test_a_prototype_is_the_most_similar_pixel_of_the_mask(num_heads):
    features, queries, masked = random_attention()
    found = prototypes(features, queries, masked, num_heads=num_heads)
    size = features.shape[-1] // num_heads
    for picture in range(2):
        for query in range(5):
            for head in range(num_heads):
                own = slice(head * size, (head + 1) * size)
                allowed = [n for n in range(12) if not masked[picture, query, n]] or range(12)
                best = max(allowed, key=lambda n: float(features[picture, n, own] @ queries[picture, query, own]))
                assert torch.equal(found[picture, query, own], features[picture, best, own])


def test_a_query_without_pixels_sees_all():
    features, queries, masked = random_attention()
    free = prototypes(features, queries, torch.zeros_like(masked), num_heads=4)
    assert torch.equal(prototypes(features, queries, masked, num_heads=4)[0, 3], free[0, 3])
    legacy = prototypes(features, queries, masked, num_heads=4, legacy=True)
    assert torch.equal(legacy[0, 3], features[0, 0])  # others of its picture see something: the first pixel
    assert not torch.equal(legacy[0, 3], free[0, 3])
    masked[0] = True
    assert torch.equal(prototypes(features, queries, masked, num_heads=4, legacy=True), free)


def test_prototypes_do_not_depend_on_the_order_or_the_scale_of_the_pixels():
    features, queries, masked = random_attention()
    found = prototypes(features, queries, masked, num_heads=4)
    order = torch.randperm(12)
    assert torch.equal(prototypes(features[:, order], queries, masked[..., order], num_heads=4), found)
    assert torch.equal(prototypes(4 * features, queries, masked, num_heads=4), 4 * found)


def test_gradients_reach_the_chosen_pixels_alone():
    features, queries, masked = random_attention()
    features.requires_grad_()
    queries.requires_grad_()
    found = prototypes(features, queries, masked, num_heads=1)
    found.sum().backward()
    assert queries.grad is None
    chosen = (features[:, None] == found[:, :, None]).all(-1).sum(1)  # (B, N): how often
    assert torch.equal(features.grad, chosen[..., None].expand(-1, -1, 16).float())


def make_cross(legacy=False):
    torch.manual_seed(0)
    cross = PrototypeAttention(16, 4, legacy=legacy).eval()
    torch.nn.init.normal_(cross.alpha)
    memory, masked = torch.randn(2, 16, 3, 4), torch.rand(2, 5, 12) < 0.5
    return cross, torch.randn(2, 5, 16), torch.randn(5, 16), memory, masked


@torch.no_grad()
def test_the_cross_attention_is_its_equations():
    cross, queries, position, memory, masked = make_cross()
    k = F.normalize(cross.to_features(cross.local(cross.memory_norm(memory)).flatten(2).mT), dim=-1)
    g = F.normalize(cross.to_queries(cross.query_norm(queries + position)), dim=-1)
    p = prototypes(k, g, masked, num_heads=4)
    mixed = cross.mix(p * g)
    unit = mixed / mixed.square().sum(-1, keepdim=True).sqrt()
    torch.testing.assert_close(cross(queries, position, memory, masked), queries + cross.proj(cross.alpha * unit + p))


@torch.no_grad()
def test_scaling_the_features_changes_nothing():
    cross, *inputs = make_cross()
    before = cross(*inputs)
    cross.to_features.weight *= 7
    cross.to_features.bias *= 7
    torch.testing.assert_close(cross(*inputs), before)


@torch.no_grad()
@pytest.mark.parametrize("legacy", [False, True])
def test_only_the_released_norm_mixes_queries(legacy):
    cross, queries, position, memory, masked = make_cross(legacy)
    masked[:, :, 0] = False  # that nobody is blind
    together = cross(queries, position, memory, masked)
    apart = cross(queries[:, :2], position[:2], memory, masked[:, :2])
    assert torch.allclose(together[:, :2], apart, atol=1e-6) is not legacy


def test_the_position_is_written_in_sines():
    found = sine_position(3, 5, 8, torch.device("cpu"))
    assert found.shape == (8, 3, 5)
    for row in range(3):
        for column in range(5):
            y, x = 2 * math.pi * (row + 1) / 3, 2 * math.pi * (column + 1) / 5
            expected = [f(a * r) for a in (y, x) for r in (1, 0.01) for f in (math.sin, math.cos)]
            torch.testing.assert_close(found[:, row, column], torch.tensor(expected), atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("legacy", "low", "high"), [(False, 0.0, 1.0), (True, 0.5, 0.7311)])
def test_the_gate_of_the_release_hardly_moves(legacy, low, high):
    torch.manual_seed(0)
    gate = ContextGate(8, legacy=legacy).eval()
    gate.mlp[1].weight.copy_(100 * torch.randn(8, 4, 1, 1))
    x = torch.rand(20, 8, 3, 4) + 0.5
    gates = gate(x) / x - 1  # one number per channel
    torch.testing.assert_close(gates, gates[..., :1, :1].expand_as(gates), atol=1e-5, rtol=0)
    assert gates.min() == pytest.approx(low, abs=1e-3)
    assert gates.max() == pytest.approx(high, abs=1e-3)


@torch.no_grad()
def test_the_deformable_convolution_starts_as_half_a_plain_one():
    torch.manual_seed(0)
    block = DeformBlock(6)
    x = torch.randn(2, 6, 7, 5)
    torch.testing.assert_close(block.convolve(x), 0.5 * F.conv2d(x, block.weight, padding=1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_offsets_move_the_taps_and_the_last_nine_weigh_them():
    torch.manual_seed(0)
    block = DeformBlock(6)
    block.to_offsets.bias[0:18:2] = 1.0  # down
    block.to_offsets.bias[1:18:2] = -2.0  # left
    weights = torch.randn(9)
    block.to_offsets.bias[18:] = weights
    x = torch.randn(2, 6, 7, 8)
    kernel = block.weight * weights.sigmoid().view(3, 3)
    moved = F.pad(x, (3, 3, 3, 3))[..., 3:12, 0:10]  # what the 3x3 at (row, column) sees, at (row + 1, column - 2)
    torch.testing.assert_close(block.convolve(x), F.conv2d(moved, kernel), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_on_a_circle_the_taps_go_around():
    torch.manual_seed(0)
    block = DeformBlock(6).double()
    block.to_offsets.weight.normal_(std=0.3)
    block.to_offsets.bias.normal_(std=9.0)  # wider than the map
    x = torch.randn(2, 6, 4, 7, dtype=torch.float64)
    assert not torch.allclose(block.convolve(x.roll(3, -1)), block.convolve(x).roll(3, -1))
    wrap(block)
    torch.testing.assert_close(block.convolve(x.roll(3, -1)), block.convolve(x).roll(3, -1))
    block.to_offsets.weight.zero_()
    block.to_offsets.bias.zero_()
    expected = F.conv2d(F.pad(x, (1, 1, 0, 0), mode="circular"), block.weight, padding=(1, 0))
    torch.testing.assert_close(block.convolve(x), 0.5 * expected)


@torch.no_grad()
def test_the_upsampling_starts_bilinear():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 5, 4)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)[..., 1:-1, 1:-1]
    torch.testing.assert_close(Upsample(6).deconv(x)[..., 1:-1, 1:-1], expected, atol=1e-5, rtol=1e-4)
    released = Upsample(6, legacy=True).deconv(x)[..., 1:-1, 1:-1]
    torch.testing.assert_close(released[:, 0], expected.sum(1), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(released[:, 1], expected[:, 1], atol=0.1)


@torch.no_grad()
def test_upsampling_fits_the_finer_map():
    torch.manual_seed(0)
    up, x = Upsample(6).eval(), torch.randn(2, 6, 5, 4)
    whole = up(x, (10, 8))
    assert whole.shape == (2, 6, 10, 8)
    assert torch.equal(up(x, (9, 7)), whole[..., :9, :7])
    assert up(x, (20, 16)).shape == (2, 6, 20, 16)


@torch.no_grad()
def test_a_wrapped_pixel_decoder_turns_with_the_panorama():
    torch.manual_seed(0)
    decoder = PixelDecoder([4, 6, 8], width=8, mask_dim=8).double().eval()
    for block in decoder.deforms:
        block.to_offsets.weight.normal_(std=0.5)
    maps = [torch.randn(1, 4 + 2 * i, 8 >> i, 32 >> i, dtype=torch.float64) for i in range(3)]
    turned = [one.roll(12 >> i, -1) for i, one in enumerate(maps)]
    assert not torch.allclose(decoder(turned)[0], decoder(maps)[0].roll(12, -1))
    assert not wrap(decoder)
    (features, memory), (straight, straight_memory) = decoder(turned), decoder(maps)
    torch.testing.assert_close(features, straight.roll(12, -1))
    torch.testing.assert_close(memory[0], straight_memory[0].roll(3, -1))
    torch.testing.assert_close(memory[1], straight_memory[1].roll(6, -1))


def random_masks(size, batch, classes=3):
    return torch.randint(0, classes, (batch, *size), dtype=torch.uint8)


@pytest.mark.parametrize(("size", "batch"), [((64, 96), 2), ((75, 101), 1), ((32, 32), 1)])
@pytest.mark.parametrize("name", STRIDES)
def test_any_backbone(name, size, batch):
    torch.manual_seed(0)
    strides = STRIDES[name]
    decoder = PEM(channels_of(strides), strides, num_classes=3, num_layers=4, **SMALL)
    outputs = decoder(random_maps(strides, size, batch))
    finest = min(stride for stride in strides if stride >= 4)
    height, width = (-(-side // finest) for side in size)
    assert [tuple(one.shape) for one in outputs.logits] == 5 * [(batch, 5, 4)]
    assert [tuple(one.shape) for one in outputs.masks] == 5 * [(batch, 5, height, width)]
    losses = decoder.loss(outputs, random_masks(size, batch))
    sum(losses.values()).backward()
    unused = [name for name, parameter in decoder.named_parameters() if parameter.grad is None]
    assert not unused
    assert all(parameter.grad.isfinite().all() for parameter in decoder.parameters())
    scores = decoder.eval().semantic(outputs)
    assert scores.shape == (batch, 3, height, width)
    assert scores.min() >= 0


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("num_layers", [1, 4])
def test_every_parameter_matters(num_layers, legacy):
    torch.manual_seed(0)
    strides = [4, 8, 16, 32]
    decoder = PEM([8] * 4, strides, num_classes=3, num_layers=num_layers, legacy=legacy, **SMALL)
    losses = decoder.loss(decoder([torch.randn(4, 8, 96 // s, 64 // s) for s in strides]), random_masks((96, 64), 4))
    sum(losses.values()).backward()
    idle = [name for name, parameter in decoder.named_parameters() if parameter.grad.abs().sum() == 0]
    assert not idle


@torch.no_grad()
def test_layers_take_turns_over_the_levels_coarsest_first():
    for strides, expected in (
        ([4, 8, 16, 32], [6, 24, 96, 6, 24]),
        ([2, 4, 8, 16, 32], [6, 24, 96, 6, 24]),
        ([4, 8], [96] * 5),
        ([16], [24] * 5),
    ):
        decoder = PEM(channels_of(strides), strides, num_classes=3, num_layers=5, finest_stride=1, **SMALL).eval()
        seen = []
        for layer in decoder.layers:
            layer.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[3]))
        outputs = decoder(random_maps(strides, (64, 96), 1))
        assert [masked.shape[-1] for masked in seen] == expected
        if strides == [16]:  # the mask has the memory's size: what a layer sees is where the last mask is positive
            for masked, mask in zip(seen, outputs.masks):
                assert torch.equal(masked, mask.flatten(2) < 0)


def test_the_published_network_has_its_parameters():
    decoder = PEM([256, 512, 1024, 2048], [4, 8, 16, 32], num_classes=150)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 12_058_216  # the released code, counted


def test_scores_are_summed_over_queries():
    torch.manual_seed(0)
    decoder = PEM([8], [8], num_classes=2, **SMALL)
    logits, masks = torch.randn(1, 5, 3), torch.randn(1, 5, 2, 2)
    found = decoder.semantic(Outputs([torch.zeros_like(logits), logits], [torch.zeros_like(masks), masks]))
    for label in range(2):
        for row in range(2):
            for column in range(2):
                expected = sum(
                    logits[0, q].exp()[label] / logits[0, q].exp().sum() / (1 + (-masks[0, q, row, column]).exp())
                    for q in range(5)
                )
                torch.testing.assert_close(found[0, label, row, column], expected)


def test_bfloat16_trains():
    torch.manual_seed(0)
    decoder = PEM([8, 8], [4, 8], num_classes=3, num_layers=2, **SMALL)
    maps = [torch.randn(2, 8, 12, 16), torch.randn(2, 8, 6, 8)]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = decoder(maps)
        losses = decoder.loss(outputs, random_masks((48, 64), 2))
        scores = decoder.semantic(outputs)
    assert outputs.masks[-1].dtype == torch.bfloat16
    assert scores.dtype == torch.float32
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in decoder.parameters())
    # the first queries read nothing yet, so that no choice of a pixel can flip
    torch.testing.assert_close(outputs.masks[0].float(), decoder(maps).masks[0], atol=0.1, rtol=0.1)


@pytest.mark.parametrize("legacy", [False, True])
def test_two_classes_are_learned_by_heart(legacy):
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    disc = ((rows - 12) ** 2 + (columns - 18) ** 2 < 81).to(torch.uint8)
    image = disc[None, None] + 0.5 * torch.randn(1, 1, 32, 32)
    stem = torch.nn.Conv2d(1, 8, 4, stride=4)
    down = torch.nn.Conv2d(8, 8, 2, stride=2)
    options = {**SMALL, "num_queries": 6, "num_points": 256}
    decoder = PEM([8, 8], [4, 8], num_classes=2, num_layers=2, legacy=legacy, **options)
    parameters = [*stem.parameters(), *down.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, 3e-3)
    for _ in range(60):
        maps = [stem(image)]
        maps.append(down(maps[0]).relu())
        outputs = decoder(maps)
        optimizer.zero_grad()
        sum(decoder.loss(outputs, disc[None]).values()).backward()
        optimizer.step()
    scores = F.interpolate(decoder.semantic(outputs), (32, 32), mode="bilinear")
    assert (scores.argmax(1)[0] == disc).float().mean() > 0.9
    assert scores[0].gather(0, disc[None].long()).mean() > 0.6


def test_what_cannot_be_built_is_refused():
    with pytest.raises(
        ValueError, match=r"dim is 30, not divisible by 4 and by task.decoder.num_heads=8; use e.g. dim=32"
    ):
        PEM([8], [8], num_classes=2, dim=30)
    with pytest.raises(ValueError, match=r"num_layers is 0; use at least 1"):
        PEM([8], [8], num_classes=2, num_layers=0)
