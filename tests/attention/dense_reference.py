"""The oracle of the softmax family: explicit (N, N) weights from loops over pairs of tokens, nothing from vantage."""

import itertools
import math

import torch

MAPS = [(1, 1), (1, 5), (5, 7), (9, 6)]


def tokens_of(height, width):
    return list(itertools.product(range(height), range(width)))


def allowed_pairs(height, width, sees):
    """(N, N) boolean: sees(query, key) of the (y, x) of both."""
    tokens = tokens_of(height, width)
    return torch.tensor([[sees(query, key) for key in tokens] for query in tokens])


def table_bias(table, height, width, extent, steps=(1, 1)):
    """(heads, N, N): table[:, dy, dx] of key - query, counted in steps; bilinear if the table has another extent."""
    tokens = tokens_of(height, width)
    rows = torch.zeros(len(tokens) ** 2, table.shape[1], table.shape[2], dtype=table.dtype)
    for number, (query, key) in enumerate(itertools.product(tokens, tokens)):
        places = []
        for axis in range(2):
            own = (table.shape[axis + 1] + 1) // 2
            scale = 1 if own == extent[axis] else (own - 1) / max(extent[axis] - 1, 1)
            place = (key[axis] - query[axis]) / steps[axis] * scale + own - 1
            places.append(min(max(place, 0), 2 * own - 2))  # only pairs that do not see each other lie outside
        for y, x in itertools.product(*({math.floor(p), math.ceil(p)} for p in places)):
            rows[number, y, x] += (1 - abs(places[0] - y)) * (1 - abs(places[1] - x))
    return torch.einsum("nyx,hyx->hn", rows, table).view(len(table), len(tokens), len(tokens))


def rotated(x, height, width, base=100.0):
    """x (B, heads, N, d) as complex numbers times exp(i angle): y turns the first half of the pairs, x the second."""
    quarter = x.shape[-1] // 4
    frequency = torch.tensor([base ** (-i / quarter) for i in range(quarter)], dtype=x.dtype)
    coords = torch.tensor(tokens_of(height, width), dtype=x.dtype)
    angle = torch.cat((coords[:, :1] * frequency, coords[:, 1:] * frequency), -1)
    real, imaginary = x.chunk(2, -1)
    turned = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), -1)


def dense_weights(x, weight, bias, num_heads, allowed, logit_bias=None, rotate=False):
    """x (B, H, W, C) -> softmax weights (B, heads, N, N) and values (B, heads, N, d), from a qkv weight (3 C, C)."""
    batch, height, width, dim = x.shape
    qkv = x.reshape(batch, height * width, dim) @ weight.T + bias
    q, k, v = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
    if rotate:
        q, k = rotated(q, height, width), rotated(k, height, width)
    logits = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(dim // num_heads)
    if logit_bias is not None:
        logits = logits + logit_bias
    logits = logits.masked_fill(~allowed, -math.inf)
    powers = (logits - logits.amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True), v


def dense_mix(x, weight, bias, num_heads, allowed, logit_bias=None, rotate=False):
    """(B, H, W, C): the heads' outputs side by side, before the output projection."""
    weights, v = dense_weights(x, weight, bias, num_heads, allowed, logit_bias, rotate)
    return (weights @ v).transpose(1, 2).reshape(x.shape)


def dense_layer(module, x, allowed, logit_bias=None, rotate=False):
    mixed = dense_mix(x, module.qkv.weight, module.qkv.bias, module.num_heads, allowed, logit_bias, rotate)
    return mixed @ module.proj.weight.T + module.proj.bias


def assert_same_with_gradients(module, reference, height, width, batch=2):
    """module(x) and reference(x) agree in float64, in value and in the gradients of x and of every parameter."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    x = torch.randn(batch, height, width, module.dim, dtype=torch.float64, generator=generator, requires_grad=True)
    cotangent = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    leaves = [x, *module.parameters()]
    got, wanted = module(x), reference(x)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)
    got_gradients = torch.autograd.grad(got, leaves, cotangent)
    wanted_gradients = torch.autograd.grad(wanted, leaves, cotangent)
    for ours, theirs in zip(got_gradients, wanted_gradients):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def randomised(module):
    """In float64, with parameters large enough for weights to differ."""
    module = module.double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module
