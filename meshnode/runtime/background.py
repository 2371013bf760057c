"""Threads for work that would hold the event loop: the disk, the name server."""

from __future__ import annotations

import _thread
from collections.abc import Callable
from typing import Any


def begin(work: Callable[..., None], *args: Any) -> None:
    """Run work in a thread of its own, and return before it has begun.

    ``threading.Thread.start()`` waits until the thread runs: on a busy machine that holds the loop for milliseconds.
    The thread ends with the interpreter, as a daemon thread does. Raises RuntimeError: there is no thread to be had.
    """
    _thread.start_new_thread(work, args)


def os_error(error: Exception) -> OSError:
    """Return what work has raised as an error that its callers expect: whatever it is, none of them waits for ever."""
    return error if isinstance(error, OSError) else OSError(0, repr(error))
