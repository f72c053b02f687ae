"""Pure functions with interchangeable backends; they know nothing but torch."""

from vantage.ops import flops  # noqa: F401 registers formulas
from vantage.ops.neighborhood_attention import neighborhood_attention

__all__ = ["neighborhood_attention"]
