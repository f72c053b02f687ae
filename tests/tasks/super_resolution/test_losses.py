"""The terms against numpy; their configs; losses of the wrong task."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from vantage.tasks.losses import Losses
from vantage.tasks.segmentation.losses import CrossEntropy
from vantage.tasks.super_resolution.losses import FFT, L1, Charbonnier

CONFIGS = Path(__file__).parents[3] / "configs/task/loss"


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.rand(2, 3, 5, 8, dtype=torch.float64) for _ in range(2))


def test_values() -> None:
    a, b = pair()
    difference = (a - b).numpy()
    assert float(L1()(a, b)) == pytest.approx(np.abs(difference).mean())
    assert float(Charbonnier(0.1)(a, b)) == pytest.approx(np.sqrt(difference**2 + 0.01).mean())
    spectrum = np.fft.fft2(difference) / np.sqrt(40)
    expected = np.concatenate([np.abs(spectrum.real), np.abs(spectrum.imag)]).mean()
    assert float(FFT()(a, b)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("term", [L1(), Charbonnier(), FFT()], ids=lambda term: type(term).__name__)
def test_equal_pictures_have_a_finite_gradient(term: torch.nn.Module) -> None:
    a = torch.rand(1, 3, 6, 6, requires_grad=True)
    term(a, a.detach().clone()).backward()
    assert torch.isfinite(a.grad).all()


def test_charbonnier_epsilon() -> None:
    with pytest.raises(ValueError, match="epsilon is 0"):
        Charbonnier(0)


@pytest.mark.parametrize("name", ["l1", "charbonnier", "fft"])
def test_configs_name_their_term(name: str) -> None:
    node = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert list(node["terms"]) == list(node["weights"]) == [name]
    target = node["terms"][name]["_target_"].rpartition(".")[2]
    assert target.lower() == name


def test_losses_of_another_task_are_refused() -> None:
    Losses({"l1": L1()}).check_task("super_resolution", "task/loss=l1")
    with pytest.raises(
        ValueError, match="task/loss=cross_entropy is for segmentation, not for super_resolution; use task"
    ):
        Losses({"cross_entropy": CrossEntropy()}).check_task("super_resolution", "task/loss=l1")
    with pytest.raises(ValueError, match="task/loss=l1 is for super_resolution, not for segmentation"):
        Losses({"l1": L1()}).check_task("segmentation", "task/loss=ce_dice")
    Losses({"mine": torch.nn.MSELoss()}).check_task("segmentation", "task/loss=ce_dice")  # a user's own may serve any
