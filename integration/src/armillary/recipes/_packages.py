"""What a recipe says where a package that it joins is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def joined(*names: str) -> Iterator[None]:
    """Import packages inside it; a missing one is named together with what to install.

    Args:
        names: The distributions that the recipe joins.

    Raises:
        ModuleNotFoundError: If one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in {name.replace("-", "_") for name in names}:
            raise  # not a package that is missing but a fault in one that is there
        message = f"this recipe needs {error.name}: pip install {' '.join(names)}"
        raise ModuleNotFoundError(message, name=error.name) from None
