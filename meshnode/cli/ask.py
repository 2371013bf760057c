"""Requests of commands to the running node of a home; the control socket's client is loaded with the first question."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshnode.daemon.request import Request


def ask(home: Path, request: Request, timeout: float | None = None) -> Iterator[dict[str, Any]]:
    """Yield the answers of the node that runs in ``home``; each may take ``timeout`` seconds.

    Raises MeshError: it refused, none runs, or no answer came in time.
    """
    from meshnode.daemon.client import call

    return call(home, request, timeout)


def ask_one(home: Path, request: Request, timeout: float | None = None) -> dict[str, Any]:
    """Return the one answer.

    Raises MeshError.
    """
    return next(iter(list(ask(home, request, timeout))))
