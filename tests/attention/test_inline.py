"""InLine attention: weights that sum to one and tell queries apart, and the convolution each image makes for itself."""

import pytest
import torch
from torch import nn

from vantage.attention.inline import KERNELS, Inline

from .dense_reference import randomised
from .references.inline import dense

DIM, HEADS = 12, 3
each_kernel = pytest.mark.parametrize("kernel", KERNELS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(**keywords):
    return randomised(Inline(DIM, HEADS, **keywords))


def global_part(**keywords):
    """Neither the convolution nor a projection."""
    module = build(local_residual=False, **keywords)
    nn.init.eye_(module.proj.weight)
    nn.init.zeros_(module.proj.bias)
    return module


def image(height=5, width=7):
    return torch.randn(2, height, width, DIM, dtype=torch.float64)


def heads(x):
    return x.flatten(1, 2).unflatten(-1, (HEADS, -1)).transpose(1, 2)


def values(module, x):
    return module.qkv(x)[..., 2 * DIM :]


@each_kernel
def test_the_explicit_weights_give_the_output_and_sum_to_one(kernel):
    module, x = global_part(kernel=kernel), image()
    weights = dense(module, x)[1]
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert (weights < 0).any()
    torch.testing.assert_close(heads(module(x)), weights @ heads(values(module, x)))


@each_kernel
def test_constant_values_come_out_as_they_are(kernel):
    module = global_part(kernel=kernel)
    nn.init.zeros_(module.qkv.weight[2 * DIM :])
    out = module(image())
    torch.testing.assert_close(out, module.qkv.bias[2 * DIM :].expand_as(out))


def test_a_constant_vector_added_to_all_keys_changes_nothing():
    module, x = build(), image()
    wanted = module(x)
    with torch.no_grad():
        module.qkv.bias[DIM : 2 * DIM] += torch.randn(DIM)
    torch.testing.assert_close(module(x), wanted)


def test_a_query_of_zero_takes_the_mean():
    module, x = global_part(), image()
    nn.init.zeros_(module.qkv.weight[:DIM])
    nn.init.zeros_(module.qkv.bias[:DIM])
    mean = values(module, x).mean(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(module(x), mean.expand_as(x))


def test_a_longer_query_leans_further_from_the_mean():
    module, x = global_part(), image()
    mean = values(module, x).mean(dim=(1, 2), keepdim=True)
    once = module(x) - mean
    with torch.no_grad():
        module.qkv.weight[:DIM] *= 3
        module.qkv.bias[:DIM] *= 3
    torch.testing.assert_close(module(x) - mean, 3 * once)
    assert once.abs().amax(dim=-1).min() > 1e-3


def test_permuted_tokens_give_permuted_outputs_without_the_convolution():
    module, x = build(local_residual=False), image()
    order = torch.randperm(35)
    permuted = x.flatten(1, 2)[:, order].view(x.shape)
    torch.testing.assert_close(module(permuted), module(x).flatten(1, 2)[:, order].view(x.shape))


def only_local(module):
    """What the convolution adds, with a projection that does nothing."""
    nn.init.eye_(module.proj.weight)
    nn.init.zeros_(module.proj.bias)
    return module


def test_a_residual_without_weights_adds_nothing():
    module, x = build(), image()
    nn.init.zeros_(module.residual[2].weight)
    nn.init.zeros_(module.residual[2].bias)
    plain = build(local_residual=False)
    plain.load_state_dict({k: v for k, v in module.state_dict().items() if not k.startswith("residual.")})
    torch.testing.assert_close(module(x), plain(x))


def test_the_kernels_come_from_the_mean_of_the_image_alone():
    """Same mean, same kernels: with the values' map shifted inside a border of zeros the local part shifts along."""
    module = build(qkv_bias=False)
    x, v = image(9, 9), torch.zeros(2, 9, 9, DIM, dtype=torch.float64)
    v[:, 2:5, 3:6] = torch.randn(2, 3, 3, DIM)
    out = module.local(x, v)
    torch.testing.assert_close(module.local(x.flip(1), v.roll((2, 1), (1, 2))), out.roll((2, 1), (1, 2)))
    assert not torch.allclose(module.local(x + 1, v), out)


def test_every_image_has_kernels_of_its_own_and_every_channel_too():
    module = build()
    v = torch.ones(2, 3, 3, DIM, dtype=torch.float64)
    centre = module.local(image(3, 3), v)[:, 1, 1]  # the sum of a kernel's taps
    assert len(centre.flatten().unique()) == 2 * DIM


@pytest.mark.parametrize(
    ("dim", "num_heads", "size", "millions"), [(192, 6, 224, 6.5), (320, 10, 288, 16.7), (384, 12, 448, 23.8)]
)
def test_deit_has_the_parameters_of_the_paper(dim, num_heads, size, millions):
    """12 blocks of this attention between DeiT's other layers."""
    own = sum(p.numel() for p in Inline(dim, num_heads).parameters())
    block = own + 2 * 2 * dim + 8 * dim**2 + 5 * dim  # two norms, the MLP of ratio 4
    tokens = (size // 16) ** 2 + 1
    stem, head = 16 * 16 * 3 * dim + dim + dim + tokens * dim, 2 * dim + 1000 * dim + 1000
    assert round((12 * block + stem + head) / 1e6, 1) == millions


def test_defaults_are_those_of_the_release():
    module = Inline(64, 8)
    assert module.kernel == "identity"
    assert module.residual[0].weight.shape == (64, 8, 1)
    assert module.residual[2].weight.shape == (576, 8, 1)
    assert Inline(64, 8, local_residual=False).residual is None


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"kernel": "elu"}, "inline: kernel 'elu' is not one of identity, relu, leakyrelu, exp"),
    ],
)
def test_refuses(keywords, message):
    with pytest.raises(ValueError, match=message):
        Inline(8, 2, **keywords)


def test_says_why_there_is_no_map():
    with pytest.raises(
        ValueError, match="inline: there is no attention map, its weights sum to one but may be negative"
    ):
        build().attention_map(image())


@each_kernel
def test_autocast_takes_the_mean_off_in_float32(kernel):
    """Rounded to bfloat16 first, the keys' mean would not be their mean any more: constant values show it."""
    module = Inline(16, 4, kernel=kernel, local_residual=False)
    nn.init.constant_(module.qkv.bias[16:32], 10)
    nn.init.zeros_(module.qkv.weight[32:])
    nn.init.constant_(module.qkv.bias[32:], 3)
    nn.init.eye_(module.proj.weight)
    nn.init.zeros_(module.proj.bias)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(torch.randn(2, 16, 16, 16))
    assert out.dtype == torch.bfloat16
    assert (out.float() - 3).abs().max() < 0.02
