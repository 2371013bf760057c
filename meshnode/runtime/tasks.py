"""The asyncio tasks of one node, and the answers that its callers wait for: all of them end with the node.

Each task has an owner, and what it raises is logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from meshnode.base.log_lines import LogRate, rated_logger
from meshnode.errors import MeshError, NodeClosed

Spawn = Callable[[Coroutine[Any, Any, None]], None]
T = TypeVar("T")
log = rated_logger("meshnode.node")


class Tasks:
    """Owner of tasks until they end or ``close`` cancels them, and of answers until they come or the node ends."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rate: LogRate) -> None:
        self._loop = loop
        self._log = rate.of_node(log)
        self._tasks: set[asyncio.Task[None]] = set()
        self._asked: set[asyncio.Future[Any]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine until it ends or the node closes.

        What it raises is logged with its traceback. After ``close`` or ``refuse`` it is closed unstarted.
        """
        if self._closed:
            work.close()
            return
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("a task failed", exc_info=error)

    def ask(self) -> asyncio.Future[Any]:
        """Return a future for an answer of the stack, which may not come before the node's end.

        See ``settle``. Raises NodeClosed after that end: a caller may have waited for a name until then.
        """
        if self._closed:
            raise NodeClosed("the node was closed meanwhile")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._asked.add(future)
        future.add_done_callback(self._asked.discard)
        return future

    def refuse(self) -> None:
        """Start no more tasks, and end the waits for answers with NodeClosed."""
        self._closed = True
        for future in list(self._asked):
            settle(future, NodeClosed("the node was closed meanwhile"))

    async def close(self) -> None:
        """Cancel every task and wait for its end."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def settle(future: asyncio.Future[T], result: T | MeshError) -> None:
    """Give an answer to its caller, which may have gone meanwhile."""
    if future.done():
        return
    if isinstance(result, MeshError):
        future.set_exception(result)
    else:
        future.set_result(result)
