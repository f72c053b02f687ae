"""Against numbers that MATLAB's imresize prints, finite differences, and what must hold for any picture."""

import math

import pytest
import torch

from vantage.ops.resize import resize
from vantage.ops.resize.weights import taps

WHOLE = [2, 3, 4, 8, 1 / 2, 1 / 3, 1 / 4, 1 / 8]


def test_the_taps_of_one_half() -> None:
    first, weights = taps(2)
    assert first == -3
    half = [0.433594, 0.113281, -0.035156, -0.011719]
    assert weights.tolist() == pytest.approx([*reversed(half), *half], abs=6e-7)


@pytest.mark.parametrize("backend", ["whole", "reference"])
def test_matlab_s_numbers(backend: str) -> None:
    ramp = torch.arange(64, dtype=torch.float64).view(1, 8, 8)
    assert resize(ramp, 0.5, backend=backend)[0, 0].tolist() == pytest.approx(
        [4.042969, 6.082031, 8.105469, 10.144531], abs=6e-7
    )
    squares = (torch.arange(16, dtype=torch.float64) ** 2).expand(1, 16, 16)
    assert resize(squares, 0.25, backend=backend)[0, 2].tolist() == pytest.approx(
        [2.390137, 30.266113, 90.749512, 186.594238], abs=6e-7
    )
    edge = [0.546875, 0.398438, 0.101562, -0.035156, -0.011719]
    column = torch.zeros(1, 16, 16, dtype=torch.float64)
    found = []
    for j in range(5):
        column.zero_()[..., j] = 1
        found.append(resize(column, 0.5, backend=backend)[0, 3, 0].item())
    assert found == pytest.approx(edge, abs=6e-7)


@pytest.mark.parametrize("scale", WHOLE)
@pytest.mark.parametrize("shape", [(2, 3, 17, 9), (1, 1, 1, 1), (1, 2, 1, 1040), (3, 24, 25)])
def test_whole_factors_are_the_reference(scale: float, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, dtype=torch.float64)
    out = resize(x, scale, backend="whole")
    assert out.shape[-2:] == tuple(math.ceil(side * scale - 1e-6) for side in shape[-2:])
    torch.testing.assert_close(out, resize(x, scale, backend="reference"), rtol=0, atol=1e-12)
    torch.testing.assert_close(resize(x.float(), scale), out.float(), rtol=0, atol=2e-6)
    half = resize(x.bfloat16(), scale)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), out, rtol=0, atol=0.01)


@pytest.mark.parametrize("scale", [*WHOLE[:2], *WHOLE[4:6], 1.5, 0.7])
def test_gradients(scale: float) -> None:
    x = torch.rand(1, 1, 5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: resize(value, scale), x)


@pytest.mark.parametrize("scale", [*WHOLE, 1.5, 0.7, 2.3])
def test_flips_and_constants(scale: float) -> None:
    x = torch.rand(1, 2, 24, 48, dtype=torch.float64)
    flat = resize(torch.full_like(x, 0.3), scale)
    torch.testing.assert_close(flat, torch.full_like(flat, 0.3))
    torch.testing.assert_close(resize(x.mT, scale), resize(x, scale).mT)
    if scale in WHOLE:  # else MATLAB's grid begins at the left and ends where it ends
        torch.testing.assert_close(resize(x.flip(-1), scale), resize(x, scale).flip(-1))


@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 1 / 8, 2, 3, 0.7])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bytes_round_halves_up_and_clamp(scale: float, backend: str) -> None:
    x = torch.randint(0, 2, (3, 26, 33), dtype=torch.uint8) * 255  # overshoots on both sides
    exact = resize(x.double(), scale, backend="reference")
    once = resize(x, scale, rounding="once", backend=backend)
    assert once.dtype == torch.uint8
    assert torch.equal(once.double(), (exact + 0.5).floor().clamp(0, 255))
    x = x // 3 + 64  # nothing to clamp: rounding in between moves a sum by half the sum of the weights' sizes at most
    exact = resize(x.double(), scale, backend="reference")
    assert (resize(x, scale, backend=backend) - exact).abs().max() < 1.2


def test_a_half_goes_up() -> None:
    x = torch.tensor([[[1, 2], [1, 2]]], dtype=torch.uint8)  # the mean of all is 1.5
    assert resize(x, 0.5).item() == 2
    assert resize(x + 1, 0.5).item() == 3  # torch.round would make 2 of 2.5


def test_each_pass_rounds_between_rows_and_columns() -> None:
    x = torch.randint(0, 256, (1, 20, 16), dtype=torch.uint8)
    rows = torch.stack(
        [resize(x[..., j : j + 1].expand(1, 20, 20), 0.5, rounding="once")[..., 5] for j in range(16)], -1
    )
    square = torch.stack([resize(row[None, None].expand(1, 16, 16), 0.5, rounding="once")[0, 3] for row in rows[0]])
    assert torch.equal(resize(x, 0.5)[0], square)


def test_empty_batch() -> None:
    assert resize(torch.zeros(0, 3, 8, 8), 0.5).shape == (0, 3, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((torch.zeros(8, 8), 0.5), r"shape \(8, 8\)"),
        ((torch.zeros(3, 0, 8), 0.5), "H, W >= 1"),
        ((torch.zeros(3, 8, 8, dtype=torch.int64), 0.5), "torch.int64"),
        ((torch.zeros(3, 8, 8), 0.0), "scale=0.0"),
        ((torch.zeros(3, 8, 8), 0.7, "whole"), "backend=reference"),
        ((torch.zeros(3, 8, 8), 0.5, "fast"), "backend='fast'"),
    ],
)
def test_errors(arguments: tuple, told: str) -> None:
    x, scale, *backend = arguments
    with pytest.raises(ValueError, match=told):
        resize(x, scale, backend=backend[0] if backend else "auto")


def test_compiles() -> None:
    compiled = torch.compile(lambda x: resize(x, 0.5), backend="aot_eager", fullgraph=True)
    x = torch.rand(1, 3, 12, 10)
    torch.testing.assert_close(compiled(x), resize(x, 0.5))
