"""Entry point. It loads nothing itself, so that Ctrl-C is quiet from the first moment on."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def main() -> None:
    """Run the command line and exit: 0 done, 1 an error, 2 wrong usage, 130 interrupted."""
    try:
        _take_standard_numbers()
        _take_standard_streams()
        from meshnode.cli.front import run

        status = run()
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def _take_standard_numbers() -> None:
    """Open the null device as each of 0, 1 and 2 that is closed (``<&-``), so that no socket gets its number."""
    with suppress(OSError):  # without the device, or at the limit of descriptors
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(number)


def _take_standard_streams() -> None:
    """Have the interpreter's streams of what was closed, which it leaves None, lead to the null device too."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            with suppress(OSError):
                setattr(sys, name, open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115
