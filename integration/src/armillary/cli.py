"""The command `armillary`: whatever happens is one clear line and an exit status.

Nothing is imported here but what that takes, so that an interrupt finds it ready however early it comes.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NoReturn

from armillary import signals, streams
from armillary.errors import Trouble


def main() -> None:
    """Entry point."""
    try:
        signals.install()
        streams.prepare()
        from armillary.commands import execute

        sys.exit(execute(sys.argv[1:]))
    except signals.Interrupted as end:
        _tell("; ".join([str(end), *getattr(end, "__notes__", ())]))
        _leave(end.status)
    except Trouble as trouble:
        _tell(str(trouble))
        sys.exit(trouble.status)


def _tell(message: str) -> None:
    print(f"armillary: {message}", file=sys.stderr)


def _leave(status: int) -> NoReturn:
    """End at once: what was held has been given back, and a library's own farewell could only change the status."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
