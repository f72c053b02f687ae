"""Pure functions with interchangeable backends; they know nothing but torch."""

from vantage.ops.neighborhood_attention import neighborhood_attention

__all__ = ["neighborhood_attention"]
