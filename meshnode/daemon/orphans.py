"""Orphans of a container: process 1 inherits what others leave behind, a health check's children say, and reaps it.

A node elsewhere has no such children, and leaves those of its program to whatever waits for them. It looks now and
then, for SIGCHLD is the event loop's own.
"""

from __future__ import annotations

import asyncio
import os

EVERY_S = 2.0


async def reap_orphans() -> None:
    """Reap children that have ended until cancelled; return where this is not the first process of its namespace."""
    while os.getpid() == 1:
        _reap()
        await asyncio.sleep(EVERY_S)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
