"""The terminal, and how lines are written to it.

Whatever comes from demos and distributions is handed to rich as `Text`, never as markup: brackets stay brackets.
"""

from __future__ import annotations

import sys

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

out = Console(highlight=False, markup=False, emoji=False)
err = Console(highlight=False, markup=False, emoji=False, stderr=True)


def reserve() -> None:
    """Keep the standard output for what is written through `out`: what anything else prints goes to standard error."""
    out.file = sys.stdout
    sys.stdout = sys.stderr


def say(console: Console, *parts: str | tuple[str, str], indent: int = 0) -> None:
    """Print one line of text, wrapped at the terminal's width under its own beginning; never when piped.

    Args:
        console: Where to.
        parts: Texts, or texts with a style.
        indent: Columns to the left.
    """
    line = Text.assemble(*parts)
    if not line:
        console.print()
    elif console.is_terminal:
        console.print(Padding(line, (0, 0, 0, indent), expand=False))
    else:
        console.print(Text(" " * indent) + line, soft_wrap=True)


def cut(text: str, width: int) -> Text:
    """A text that is no wider than a width, its end replaced by dots.

    Args:
        text: One line.
        width: Columns.
    """
    line = Text(text)
    line.truncate(max(1, width), overflow="ellipsis")
    return line
