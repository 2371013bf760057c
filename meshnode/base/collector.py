"""Pause of the garbage collector while modules are loaded and a node is made: there is no garbage, and much to look at.

Looking again and again at what only grows took a tenth of a cold start (measured).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """Collect no garbage inside the block; what was made in it counts as old after.

    Where the program has the collector off, or keeps frozen objects, that is left so.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()  # into the oldest generation, without a look at each object
        if was_on:
            gc.enable()
