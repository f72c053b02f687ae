"""Full attention against torch's own multi-head attention; test_suite.py has the equations."""

import pytest
import torch
from torch import nn

from vantage.attention.softmax import Softmax

from .dense_reference import randomised


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_equals_torch_multihead_attention():
    module = randomised(Softmax(12, 3))
    oracle = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    oracle.load_state_dict(
        {
            "in_proj_weight": module.qkv.weight,
            "in_proj_bias": module.qkv.bias,
            "out_proj.weight": module.proj.weight,
            "out_proj.bias": module.proj.bias,
        }
    )
    x = torch.randn(2, 5, 7, 12, dtype=torch.float64)
    tokens = x.flatten(1, 2)
    out, weights = oracle(tokens, tokens, tokens, average_attn_weights=False)
    torch.testing.assert_close(module(x), out.view_as(x))
    torch.testing.assert_close(module.attention_map(x), weights)


def test_permutation_of_tokens_is_permuted_without_a_position():
    module = randomised(Softmax(12, 3))
    x = torch.randn(1, 4, 6, 12, dtype=torch.float64)
    order = torch.randperm(24)
    shuffled = x.flatten(1, 2)[:, order].view_as(x)
    torch.testing.assert_close(module(shuffled).flatten(1, 2), module(x).flatten(1, 2)[:, order])
