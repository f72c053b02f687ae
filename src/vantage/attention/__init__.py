"""Token mixers over feature maps, one mechanism per file, named like its config."""

from vantage.attention.agent import Agent
from vantage.attention.axial import Axial
from vantage.attention.base import Attention
from vantage.attention.focused_linear import FocusedLinear
from vantage.attention.grid import Grid
from vantage.attention.hilo import Hilo
from vantage.attention.lrsa import Lrsa
from vantage.attention.neighborhood import Neighborhood
from vantage.attention.rvsa import Rvsa
from vantage.attention.rwin import Rwin
from vantage.attention.softmax import Softmax
from vantage.attention.token_aggregation import TokenAggregation
from vantage.attention.window import Window

__all__ = [
    "Agent",
    "Attention",
    "Axial",
    "FocusedLinear",
    "Grid",
    "Hilo",
    "Lrsa",
    "Neighborhood",
    "Rvsa",
    "Rwin",
    "Softmax",
    "TokenAggregation",
    "Window",
]
