"""Vantage: a vision training codebase in which attention is a config value."""
