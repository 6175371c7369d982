"""Standard output and error that take any text, whatever their encoding: what it lacks is written in ASCII."""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata

_INSTEAD = {
    "✓": "+", "✗": "x", "·": ".", "↑": "^", "↓": "v", "→": ">", "–": "-", "—": "-", "−": "-", "…": ".", "×": "x",
    "≥": ">=", "≤": "<=", "±": "+-", "“": '"', "”": '"', "‘": "'", "’": "'", "━": "-", "╸": "-", "╺": "-", "─": "-",
}  # fmt: skip


def prepare() -> None:
    """Let standard output and error write what they can, and the nearest to what they cannot."""
    codecs.register_error("armillary", _nearest)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="armillary")


def _nearest(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_ascii, error.object[error.start : error.end])), error.end


def _ascii(character: str) -> str:
    if character in _INSTEAD:
        return _INSTEAD[character]
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or "?"
