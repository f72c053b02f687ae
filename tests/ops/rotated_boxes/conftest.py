"""What the tests of all backends share."""

import pytest
import torch

from vantage.ops.rotated_boxes import native


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def backend(request):
    """A backend's name, from its parameter; skips where it cannot run."""
    if request.param == "native" and native.library_error():
        pytest.skip(native.library_error())
    return request.param
