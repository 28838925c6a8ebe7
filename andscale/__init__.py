"""Anchor Neighbourhood Discovery (AND, ICML 2019) at ImageNet scale."""

__version__ = "0.1.0"
