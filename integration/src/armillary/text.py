"""The text of others made safe: what demos and distributions say may hold anything.

It is cleaned where it enters (a demo's result, a kept file, a distribution's metadata): what shows it can trust it.
"""

from __future__ import annotations

import re
from typing import Any

_SEQUENCES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_].*?(?:\x07|\x1b\\)|[ -/]*[0-~])", re.DOTALL)
_RETURNS = re.compile(r"\r\n?")
# Controls but tab and newline; half surrogates, which no file can hold; what turns the direction of writing around.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """A text without what a terminal would obey and what a file cannot hold; lines and tabs stay.

    Args:
        text: Anything.
    """
    return _UNSAFE.sub("", _RETURNS.sub("\n", _SEQUENCES.sub("", text)))


def clean_data(data: Any) -> Any:
    """What JSON holds, with every text in it cleaned.

    Args:
        data: Lists, mappings, texts, numbers.
    """
    if isinstance(data, str):
        return clean(data)
    if isinstance(data, list):
        return [clean_data(item) for item in data]
    if isinstance(data, dict):
        return {clean(key): clean_data(value) for key, value in data.items()}
    return data


def one_line(text: str) -> str:
    """A text as one line, for a table or a message.

    Args:
        text: Anything that is clean.
    """
    return " ".join(text.split())
