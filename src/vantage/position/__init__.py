"""Positional encodings, one per file, named like its config."""

from vantage.position.base import Position
from vantage.position.rel_bias import RelBias
from vantage.position.rope_axial import RopeAxial

__all__ = ["Position", "RelBias", "RopeAxial"]
