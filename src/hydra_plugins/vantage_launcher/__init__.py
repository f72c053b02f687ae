"""Hydra finds its plugins under the namespace `hydra_plugins`, which must therefore have no __init__.py itself."""
