"""What ends the command with one line instead of a traceback."""

from __future__ import annotations

FAILED, USAGE = 1, 2


class Trouble(Exception):
    """Something that the user can do something about; the message says what it is.

    Attributes:
        status: The exit status of the command.
    """

    status = USAGE


class UsageError(Trouble):
    """The command cannot be carried out as it was given."""
