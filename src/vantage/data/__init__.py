"""Data modules, one per on-disk format; they know no model."""
