"""Positional encodings, one per file, named like its config."""
