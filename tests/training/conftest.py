import logging
import warnings

import pytest


@pytest.fixture(autouse=True)
def quiet():
    """Lightning's tips and warnings say nothing about the code under test."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
