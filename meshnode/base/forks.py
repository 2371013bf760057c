"""What a forked child must not hold: with it the parent's lock and ports would outlive the parent."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Closable(Protocol):
    """What closes its descriptor."""

    def close(self) -> None: ...


_held: weakref.WeakSet[Closable] = weakref.WeakSet()


def close_in_child(resource: Closable) -> None:
    """Close a file or socket in every child that this process forks from now on.

    The parent keeps it.
    """
    _held.add(resource)


def _close_all() -> None:
    for resource in list(_held):
        resource.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)
