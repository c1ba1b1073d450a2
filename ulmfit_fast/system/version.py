"""The version of this package, which setup.py reads as text."""

__all__ = ["__version__"]

__version__ = "0.1.0"
