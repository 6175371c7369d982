"""How much of a demo is run. Apart from the contract, so that the command line starts without loading that."""

from __future__ import annotations

from typing import Literal

Preset = Literal["smoke", "laptop", "paper"]
PRESETS: tuple[Preset, ...] = ("smoke", "laptop", "paper")
JUDGED: tuple[Preset, ...] = ("laptop", "paper")  # a smoke run shows the form alone
