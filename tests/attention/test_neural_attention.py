"""Neural attention: tiles of keys against all pairs at once, its network's draw, and what it holds in memory."""

import pytest
import torch
import torch.nn.functional as F

from vantage.attention import neural_attention
from vantage.attention.neural_attention import NeuralAttention, TiledAttention, pair_scores
from vantage.position.rel_bias import RelBias

from .dense_reference import assert_same_with_gradients
from .references.neural_attention import reference
from .table import pairs_that_differ
from .test_suite import PeakBytes


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def image(height=5, width=7, dim=12, dtype=torch.float64):
    return torch.randn(2, height, width, dim, dtype=dtype, generator=torch.Generator().manual_seed(1))


def build(projection_dim=2, **keywords):
    return pairs_that_differ(NeuralAttention(12, 3, projection_dim=projection_dim, **keywords))


# tiles and the split of the first layer


@pytest.mark.parametrize("tile", [1, 4, 15, 64])
@pytest.mark.parametrize("projection_dim", [1, 2, 5])
def test_tiles_equal_concatenated_pairs_in_value_and_gradients(projection_dim, tile, monkeypatch):
    monkeypatch.setattr(neural_attention, "KEY_TILE", tile)
    module = build(projection_dim)
    x = image(3, 5)
    assert module.attention_map(x).std(-1).mean() > 1e-3, "pairs do not differ"
    assert_same_with_gradients(module, lambda x: reference(module, x), 3, 5)


@pytest.mark.parametrize("tile", [4, 64])
def test_tiles_equal_concatenated_pairs_with_a_bias(tile, monkeypatch):
    monkeypatch.setattr(neural_attention, "KEY_TILE", tile)
    module = build(position=RelBias(4, 3, window_size=(3, 2)))
    assert_same_with_gradients(module, lambda x: reference(module, x), 3, 5)


@pytest.mark.parametrize("tile", [2, 64])
def test_gradients_of_tiles_are_numerical_ones(tile, monkeypatch):
    monkeypatch.setattr(neural_attention, "KEY_TILE", tile)
    shapes = [(1, 2, 3, 5), (1, 2, 3, 5), (1, 2, 5, 4), (2, 5, 5), (2, 3), (2,), (1, 2)]
    arguments = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(TiledAttention.apply, arguments)
    arguments[3] = None
    assert torch.autograd.gradcheck(TiledAttention.apply, arguments)


def test_a_running_maximum_that_rises_late_keeps_the_sum(monkeypatch):
    """Scores of a thousand and more: weights of early tiles vanish, those of late ones neither overflow."""
    monkeypatch.setattr(neural_attention, "KEY_TILE", 4)
    network = (torch.ones(1, 1), torch.zeros(1), torch.ones(1, 1))
    q, k = torch.zeros(1, 1, 1, 16), torch.linspace(0, 3000, 16).view(1, 1, 1, 16)
    v = torch.randn(1, 1, 16, 4)
    for order in (torch.arange(16), torch.arange(16).flip(0)):
        out = TiledAttention.apply(q, k[..., order], v[:, :, order], None, *network)
        torch.testing.assert_close(out, v[:, :, 15:].expand_as(out))


def test_tiles_that_a_bias_hides_count_for_nothing(monkeypatch):
    monkeypatch.setattr(neural_attention, "KEY_TILE", 4)
    q, k, v = torch.randn(1, 2, 3, 16), torch.randn(1, 2, 3, 16), torch.randn(1, 2, 16, 4, requires_grad=True)
    network = (torch.ones(1, 3), torch.zeros(1), torch.ones(1, 1))
    for shown in (slice(9, 14), slice(0, 3)):
        bias = torch.full((2, 16, 16), -1e30)
        bias[..., shown] = 0
        out = TiledAttention.apply(q, k, v, bias, *network)
        scores, _, _ = pair_scores(q, k[..., shown], *network)
        torch.testing.assert_close(out, scores.softmax(-1) @ v[:, :, shown])
        (gradient,) = torch.autograd.grad(out.sum(), v)
        assert gradient.isfinite().all()
        assert gradient[:, :, shown].all()
        assert gradient.count_nonzero() == gradient[:, :, shown].numel()


def test_backward_holds_no_second_graph():
    module, x = build(), image().requires_grad_()
    (gradient,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_memory_of_a_step_is_linear_in_the_tokens(monkeypatch):
    monkeypatch.setattr(neural_attention, "KEY_TILE", 16)
    module = NeuralAttention(16, 4)
    peak = []
    for height in (16, 32, 64):
        x = torch.randn(1, height, 16, 16, requires_grad=True)
        with PeakBytes() as bytes_:
            module(x).sum().backward()
        peak.append(bytes_.peak)
    assert peak[2] - peak[1] <= 2.1 * (peak[1] - peak[0])
    assert peak[2] < 4 * 4 * 1024**2  # less than the weights of four heads, or any unit of all pairs


@pytest.mark.parametrize("position", [None, RelBias(4, 4, window_size=5)])
def test_several_tiles_compile_and_export(position):
    torch._dynamo.reset()
    module, x = NeuralAttention(16, 4, position=position), image(9, 16, 16, torch.float32)
    assert 2 * neural_attention.KEY_TILE < 9 * 16
    wanted = module(x)
    wanted.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    got = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
    got.square().sum().backward()
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close([parameter.grad for parameter in module.parameters()], gradients)
    torch.testing.assert_close(torch.export.export(module.eval(), (x,)).module()(x), wanted)


# the equations


@pytest.mark.parametrize("constant", [0.0, -3.0, 40.0])
def test_a_constant_in_all_scores_changes_nothing(constant):
    module, x = build(), image()
    torch.testing.assert_close(reference(module, x, constant), module(x))
    assert module.linear3.bias is None


@pytest.mark.parametrize("layer", ["linear1", "linear2", "linear3"])
def test_a_layer_of_zeros_gives_uniform_attention(layer):
    module, x = build(), image()
    getattr(module, layer).weight.data.zero_()
    weights = module.attention_map(x)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 35))
    v = module.qkv(x)[..., 24:].mean((1, 2), keepdim=True)
    torch.testing.assert_close(module(x), module.proj(v).expand_as(x))


def test_attention_map_reproduces_the_output():
    module, x = build(), image()
    v = module.qkv(x)[..., 24:].reshape(2, 35, 3, 4).transpose(1, 2)
    mixed = (module.attention_map(x) @ v).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(module.proj(mixed), module(x))


def test_permutation_of_tokens_is_permuted_without_a_position():
    module, x = build(), image(4, 6)
    order = torch.randperm(24)
    shuffled = x.flatten(1, 2)[:, order].view_as(x)
    torch.testing.assert_close(module(shuffled).flatten(1, 2), module(x).flatten(1, 2)[:, order])


def test_scores_are_no_function_of_the_difference_or_the_product_alone():
    """Neither symmetric nor the same for all queries, as an additive score without a hidden layer would be."""
    module, x = build(4), image()
    scores, _, _ = pair_scores(*module.split(x)[:2], *module.network(torch.float64))
    assert not torch.allclose(scores, scores.mT)
    centred = (
        scores - scores.mean(-1, keepdim=True) - scores.mean(-2, keepdim=True) + scores.mean((-1, -2), keepdim=True)
    )
    assert centred.abs().max() > 0.01 * scores.abs().max()


# the network


@pytest.mark.parametrize(("projection_dim", "head_dim"), [(1, 4), (2, 64), (3, 96), (8, 16)])
def test_the_network_is_alive_at_first_and_its_size_is_the_formula(projection_dim, head_dim):
    dim, units = 2 * head_dim, max(1, projection_dim // 2)
    x = torch.randn(1, 4, 4, dim)
    for seed in range(20):
        torch.manual_seed(seed)
        module = NeuralAttention(dim, 2, projection_dim=projection_dim)
        assert module.attention_map(x).std(-1).max() > 1e-4, f"dead with seed {seed}"
    count = sum(p.numel() for name, p in module.named_parameters() if not name.startswith(("qkv", "proj")))
    down = 2 * (head_dim * projection_dim + projection_dim)
    assert count == down + 2 * projection_dim**2 + projection_dim + units * projection_dim + units + units
    assert sum(p.numel() for p in module.parameters()) == count + 4 * dim**2 + 4 * dim


def test_autocast_scores_in_float32():
    module, x = NeuralAttention(16, 4), image(dim=16, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        q, k, v = module.split(x)
        assert (q.dtype, k.dtype, v.dtype) == (torch.float32, torch.float32, torch.bfloat16)
        assert module(x).dtype == torch.bfloat16
        assert module.attention_map(x).dtype == torch.float32
    module.bfloat16()
    assert module.split(x.bfloat16())[0].dtype == torch.float32
    assert module(x.bfloat16()).dtype == torch.bfloat16


# dropout and refusals


def test_dropout_of_weights_is_applied_to_the_weights(monkeypatch):
    module, x = build(attn_drop=0.5), image()
    wanted = module.eval()(x)
    module.train()
    assert not torch.equal(module(x), module(x))
    monkeypatch.setattr(F, "dropout", lambda weights, *_: weights)
    torch.testing.assert_close(module(x), wanted)


@pytest.mark.parametrize("value", [0, -2, 2.0, "d/32"])
def test_refuses(value):
    with pytest.raises(
        ValueError, match=f"neural_attention: projection_dim {value!r} is not positive; the paper uses 2"
    ):
        NeuralAttention(8, 2, projection_dim=value)
