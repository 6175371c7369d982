"""Ctrl-C and SIGTERM end the command alike: what it holds is given back, one line says so, nothing stays behind."""

from __future__ import annotations

import signal
from types import FrameType


class Interrupted(BaseException):
    """The command was asked to end; raised wherever it is at that moment. Its notes are told to the user.

    Not a `KeyboardInterrupt`, which libraries turn into words and exit statuses of their own.

    Attributes:
        status: The exit status, as shells count it.
    """

    def __init__(self, number: int) -> None:
        super().__init__("interrupted" if number == signal.SIGINT else "terminated")
        self.status = 128 + number


_ENDINGS = (signal.SIGINT, signal.SIGTERM)


def install() -> None:
    """Take the signals over, also SIGINT that was inherited as ignored, as by what a script starts in the background.

    Only the main thread may; call it again after a library has taken them.
    """
    for number in _ENDINGS:
        signal.signal(number, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    # One is enough, and its ending is short: `uv run` passes on what the terminal has sent to everyone already.
    for again in _ENDINGS:
        signal.signal(again, signal.SIG_IGN)
    raise Interrupted(number)
