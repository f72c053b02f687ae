"""The rotation against complex numbers, and what makes it a relative encoding."""

import math

import pytest
import torch

from vantage.position.rope_axial import RopeAxial


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_equals_multiplication_by_complex_numbers():
    position = RopeAxial(8, 1, base=50.0)
    q, k = torch.randn(2, 3, 2, 8, dtype=torch.float64)
    coords = torch.tensor([[0.0, 3.0], [2.0, 5.0]])
    turned = position.rotate(q, k, coords)
    for before, after in zip((q, k), turned):
        for token in range(2):
            for axis in range(2):
                for pair in range(2):
                    a, b = 2 * axis + pair, 2 * axis + pair + 4
                    angle = coords[token, axis].item() * 50.0 ** (-pair / 2)
                    wanted = torch.complex(before[:, token, a], before[:, token, b]) * complex(
                        math.cos(angle), math.sin(angle)
                    )
                    torch.testing.assert_close(after[:, token, a], wanted.real)
                    torch.testing.assert_close(after[:, token, b], wanted.imag)


def test_logits_depend_on_the_pixel_offset_only():
    position = RopeAxial(16, 1)
    q, k = torch.randn(2, 6, 16, dtype=torch.float64)
    coords = torch.randint(0, 20, (6, 2)).float()

    def logits(shift):
        turned_q, turned_k = position.rotate(q, k, coords + torch.tensor(shift))
        return turned_q @ turned_k.T

    torch.testing.assert_close(logits([7.0, -3.0]), logits([0.0, 0.0]))
    assert not torch.allclose(logits([0.0, 0.0]), q @ k.T)


def test_lengths_are_kept_and_the_origin_is_not_turned():
    position = RopeAxial(16, 1)
    q, k = torch.randn(2, 5, 16, dtype=torch.float64)
    turned_q, turned_k = position.rotate(q, k, torch.randn(5, 2))
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm(dim=-1))
    still_q, still_k = position.rotate(q, k, torch.zeros(5, 2))
    assert torch.equal(still_q, q)
    assert torch.equal(still_k, k)
    torch.testing.assert_close(turned_k.norm(dim=-1), k.norm(dim=-1))


def test_angles_are_float32_for_bfloat16_inputs():
    position = RopeAxial(8, 1)
    q = torch.ones(1, 8, dtype=torch.bfloat16)
    turned, _ = position.rotate(q, q, torch.tensor([[257.0, 0.0]]))  # 257 is no bfloat16
    assert turned.dtype == torch.bfloat16
    exact, _ = position.rotate(q.double(), q.double(), torch.tensor([[257.0, 0.0]]))
    torch.testing.assert_close(turned.double(), exact, atol=1e-2, rtol=1e-2)


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="head_dim 6 is not a multiple of 4"):
        RopeAxial(6, 1)
    with pytest.raises(ValueError, match="base=0"):
        RopeAxial(8, 1, base=0)
