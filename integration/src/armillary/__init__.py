"""The frame: run, compare and combine the methods of armillary, each its own package."""

from importlib.metadata import version as _version

__all__ = ["__version__"]

__version__ = _version("armillary")
