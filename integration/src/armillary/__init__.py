"""The frame: run, compare and combine the methods of armillary, each its own package."""

__all__ = ["__version__"]

__version__: str


def __getattr__(name: str) -> str:
    """The version, read when it is asked for: looking up metadata costs more than the command's own start."""
    if name == "__version__":
        from importlib.metadata import version

        return version("armillary")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
