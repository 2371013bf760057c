"""Entry point. It loads nothing that the interpreter has not, so that Ctrl-C is quiet from the first moment on."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the module signal takes longer to load than the rest of this
import os
import sys

INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit: 0 done, 1 an error, 2 wrong usage, 130 interrupted."""
    is_heeded = _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler  # not where it is ignored, as by nohup
    try:
        if is_heeded:
            _signal.signal(_signal.SIGINT, _leave)
        _take_standard_numbers()
        _take_standard_streams()
        from meshnode.cli.front import run

        if is_heeded:
            _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        status = run()
    except KeyboardInterrupt:
        status = INTERRUPTED
    if is_heeded:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # what is left is the interpreter's end
    sys.exit(status)


def _leave(number: int, frame: object) -> None:
    """End this process: nothing has begun."""
    os._exit(INTERRUPTED)


def _take_standard_numbers() -> None:
    """Open the null device as each of 0, 1 and 2 that is closed (``<&-``), so that no socket gets its number."""
    try:
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(number)
    except OSError:  # without the device, or at the limit of descriptors
        return


def _take_standard_streams() -> None:
    """Have the interpreter's streams of what was closed, which it leaves None, lead to the null device too."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            try:
                setattr(sys, name, open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115
            except OSError:
                continue
