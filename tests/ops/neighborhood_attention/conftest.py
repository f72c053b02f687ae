"""What the tests of all backends share."""

import pytest
import torch

from vantage.ops.neighborhood_attention import tiled


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def poisoned():
    """Memory that torch.empty hands out is NaN, so that a result nobody wrote is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def backend(request, monkeypatch):
    """A backend's name from its parameter: "tiled-dense" and "tiled-halo" are the paths of tiled, the latter with tiles
    of 3, so that small maps have several and ragged ones."""
    name, _, path = request.param.partition("-")
    if path:
        monkeypatch.setattr(tiled, "prefers_dense", lambda axes: path == "dense")
        monkeypatch.setattr(tiled, "TILE", 3)
    return name
