"""The module against explicit weights on maps of every kind; the op has tests of its own."""

import logging

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vantage.attention.base import log_once
from vantage.attention.neighborhood import Neighborhood
from vantage.attention.softmax import Softmax
from vantage.position.rel_bias import RelBias
from vantage.position.rope_axial import RopeAxial

from .dense_reference import MAPS, allowed_pairs, assert_same_with_gradients, dense_layer, randomised, table_bias


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def in_window(lengths, kernel, dilation):
    """The published rule: per residue class, start = clamp(i - kernel // 2, 0, class length - kernel)."""

    def along(query, key, length, kernel, dilation):
        if query % dilation != key % dilation:
            return False
        class_length = len(range(query % dilation, length, dilation))
        start = min(max(query // dilation - kernel // 2, 0), class_length - kernel)
        return start <= key // dilation < start + kernel

    return lambda query, key: all(map(along, query, key, lengths, kernel, dilation))


def fitted(asked_kernel, asked_dilation, lengths):
    kernel = tuple(min(k, length) for k, length in zip(asked_kernel, lengths))
    widest = tuple(length // k for k, length in zip(kernel, lengths))
    dilation = widest if asked_dilation == "span" else tuple(map(min, asked_dilation, widest))
    return kernel, dilation


@pytest.mark.parametrize("hw", MAPS)
@pytest.mark.parametrize("kind", ["none", "rel_bias", "rope_axial"])
@pytest.mark.parametrize(("kernel", "dilation"), [(7, 1), (3, 2), ((2, 4), 1), (2, "span"), ((3, 1), (1, 4))])
def test_equals_dense(hw, kind, kernel, dilation):
    position = {"none": None, "rel_bias": RelBias(4, 3), "rope_axial": RopeAxial(4, 3)}[kind]
    module = randomised(Neighborhood(12, 3, kernel_size=kernel, dilation=dilation, position=position))
    fits, steps = fitted(module.kernel_size, module.dilation, hw)
    allowed = allowed_pairs(*hw, in_window(hw, fits, steps))

    def reference(x):
        bias = table_bias(module.position.table, *hw, module.kernel_size, steps) if kind == "rel_bias" else None
        return dense_layer(module, x, allowed, bias, rotate=kind == "rope_axial")

    assert_same_with_gradients(module, reference, *hw)
    weights = module.attention_map(torch.randn(1, *hw, 12, dtype=torch.float64))
    assert torch.equal(weights[0, 0] > 0, allowed)


@pytest.mark.parametrize(
    "keywords", [{"stride": 2}, {"stride": (1, 3)}, {"is_causal": True}, {"is_causal": (False, True)}]
)
@pytest.mark.parametrize("position", [None, RelBias])
def test_backends_agree_with_strides_and_causal_axes(keywords, position):
    module = Neighborhood(12, 3, kernel_size=3, position=position and position(4, 3), **keywords)
    module = randomised(module)
    reference = Neighborhood(12, 3, kernel_size=3, backend="reference", position=module.position, **keywords).double()
    reference.load_state_dict(module.state_dict())
    x = torch.randn(2, 8, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(module(x), reference(x))


@pytest.mark.parametrize("hw", [(5, 7), (1, 1), (7, 3)])
def test_kernel_over_the_map_is_full_attention(hw):
    module = randomised(Neighborhood(12, 3, kernel_size=7))
    full = Softmax(12, 3).double()
    full.load_state_dict(module.state_dict())
    x = torch.randn(2, *hw, 12, dtype=torch.float64)
    torch.testing.assert_close(module(x), full(x))


def test_span_is_the_widest_dilation_that_fits():
    module = Neighborhood(12, 3, kernel_size=3, dilation="span")
    assert [axis.dilation for axis in module.axes(14, 9)] == [4, 3]
    assert [axis.dilation for axis in module.axes(2, 5)] == [1, 1]


def test_translation_moves_the_interior():
    module = randomised(Neighborhood(12, 3, kernel_size=5, position=RelBias(4, 3)))
    x = torch.randn(1, 10, 11, 12, dtype=torch.float64)
    moved = module(x.roll((1, 2), (1, 2)))
    torch.testing.assert_close(moved[:, 3:8, 4:9], module(x)[:, 2:7, 2:7])


def test_clamp_logs_once_or_raises(caplog):
    log_once.cache_clear()
    module = Neighborhood(12, 3, kernel_size=5, dilation=2)
    with caplog.at_level(logging.INFO, logger="vantage.attention"):
        for _ in range(3):
            module(torch.randn(1, 4, 9, 12))
    (record,) = caplog.records
    assert record.getMessage() == (
        "neighborhood: kernel_size (5, 5) with dilation (2, 2) is clamped to (4, 5) with (1, 1) on the 4x9 map"
    )
    strict = Neighborhood(12, 3, kernel_size=5, dilation=2, clamp=False)
    with pytest.raises(
        ValueError, match=r"does not fit the 4x9 map .*kernel_size \(4, 5\) with dilation \(1, 1\) does"
    ):
        strict(torch.randn(1, 4, 9, 12))
    assert strict(torch.randn(1, 10, 11, 12)).shape == (1, 10, 11, 12)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"attn_drop": 0.1}, r"attn_drop=0.1 is not available; use attention.proj_drop"),
        ({"dilation": "widest"}, r"attention.dilation='widest'; use span"),
        ({"dilation": 0}, r"attention.dilation=0"),
        ({"kernel_size": (3, 3, 3)}, r"attention.kernel_size=\(3, 3, 3\)"),
        ({"kernel_size": 3, "stride": 4}, r"stride \(4, 4\) exceeds kernel_size \(3, 3\)"),
        ({"backend": "magic"}, r"attention.backend='magic'; use auto, native, triton, cuda, flex, tiled, reference"),
        ({"is_causal": "y"}, r"is_causal='y'"),
    ],
)
def test_bad_values_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        Neighborhood(12, 3, **keywords)


@pytest.mark.parametrize("hw", [(1, 1), (8, 8), (11, 7)])
@pytest.mark.parametrize(
    "keywords", [{}, {"dilation": 2}, {"stride": 2}, {"is_causal": True}, {"is_causal": True, "stride": 3}]
)
def test_flops_count_pairs_that_attend(hw, keywords):
    module = Neighborhood(12, 3, kernel_size=3, **keywords)
    pairs = int((module.attention_map(torch.randn(1, *hw, 12))[0, 0] > 0).sum())
    assert module.flops(*hw) == 8 * hw[0] * hw[1] * 12 * 12 + 4 * 12 * pairs


def test_flops_equal_the_counter_of_the_reference_backend():
    module = Neighborhood(12, 3, kernel_size=3, backend="reference")
    with FlopCounterMode(display=False) as counter:
        module(torch.randn(1, 6, 7, 12))
    assert module.flops(6, 7) == counter.get_total_flops()


def test_repr_shows_the_backend_in_use():
    module = Neighborhood(12, 3, kernel_size=3)
    assert module.extra_repr().endswith("backend=auto")
    module.double()(torch.randn(1, 6, 7, 12, dtype=torch.float64))
    assert module.extra_repr().endswith("backend=auto (tiled)")
    named = Neighborhood(12, 3, kernel_size=3, backend="reference")
    named(torch.randn(1, 6, 7, 12))
    assert named.extra_repr().endswith("backend=reference")
