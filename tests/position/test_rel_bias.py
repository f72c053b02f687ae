"""The table's look-up, its resizing against torch's interpolation, its size, its errors."""

import pytest
import torch
import torch.nn.functional as F

from vantage.attention.grid import Grid
from vantage.attention.neighborhood import Neighborhood
from vantage.attention.softmax import Softmax
from vantage.attention.window import Window
from vantage.position.rel_bias import RelBias, resize_table


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_bias_is_the_entry_of_the_offset():
    position = RelBias(4, 2, window_size=(3, 4))
    offsets = torch.tensor([[[0, 0], [2, -3]], [[-2, 3], [1, 1]]])
    bias = position.bias(offsets, (3, 4))
    assert bias.shape == (2, 2, 2)
    for place in ((0, 0), (0, 1), (1, 0), (1, 1)):
        dy, dx = offsets[place].tolist()
        assert torch.equal(bias[(slice(None), *place)], position.table[:, dy + 2, dx + 3])


def test_gradient_reaches_the_entries_that_were_asked_for():
    position = RelBias(4, 2, window_size=3)
    offsets = torch.tensor([[0, 0], [1, 1], [1, 1]])
    position.bias(offsets, (3, 3)).sum().backward()
    wanted = torch.zeros(2, 5, 5)
    wanted[:, 2, 2], wanted[:, 3, 3] = 1, 2
    assert torch.equal(position.table.grad, wanted)


@pytest.mark.parametrize("extent", [(7, 7), (2, 9), (5, 3), (4, 4), (14, 2)])
def test_resizing_equals_torchs_bilinear_interpolation(extent):
    table = torch.randn(3, 7, 9, dtype=torch.float64)
    wanted = F.interpolate(table[None], size=[2 * e - 1 for e in extent], mode="bilinear", align_corners=True)[0]
    torch.testing.assert_close(resize_table(table, extent), wanted)


def test_resizing_keeps_the_centre_even_for_a_single_cell():
    table = torch.randn(3, 7, 9)
    for extent in ((1, 1), (1, 5), (6, 1), (2, 2), (20, 30)):
        resized = resize_table(table, extent)
        torch.testing.assert_close(resized[:, extent[0] - 1, extent[1] - 1], table[:, 3, 4])


@pytest.mark.parametrize(
    ("attention", "extent"),
    [
        (lambda p: Window(8, 2, window_size=5, position=p), (5, 5)),
        (lambda p: Grid(8, 2, grid_size=(3, 4), position=p), (3, 4)),
        (lambda p: Neighborhood(8, 2, kernel_size=9, position=p), (9, 9)),
        (lambda p: Softmax(8, 2, position=p), (14, 14)),
    ],
)
def test_the_table_takes_the_attentions_window(attention, extent):
    assert attention(RelBias(4, 2)).position.extent == extent
    assert attention(RelBias(4, 2, window_size=6)).position.extent == (6, 6)


def test_resizing_and_training_are_possible_after_inference_mode():
    position = RelBias(4, 2, window_size=5)
    offsets = torch.zeros(1, 2, dtype=torch.long)
    with torch.inference_mode():
        position.bias(offsets, (8, 3))
    position.bias(offsets, (8, 3)).sum().backward()
    assert position.table.grad.sum() == 2


@pytest.mark.parametrize("window_size", [0, (3,), (2, -1), (1, 2, 3)])
def test_bad_window_size_is_named(window_size):
    with pytest.raises(ValueError, match="rel_bias: window_size="):
        RelBias(4, 2, window_size=window_size)
