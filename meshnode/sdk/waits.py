"""Calls that wait for a service or a name that this node does not know: for gossip, and for a search in the DHT."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from meshnode.errors import NodeClosed
from meshnode.runtime.runtime import Runtime

FIND_YOUNG_S, FIND_S = 4.0, 0.6  # how long to wait for an unknown name: a young node has much to hear yet
YOUNG_S = 15.0
SEARCH_S = 5.0  # how long to wait for a search in the DHT, where the mesh is too large for gossip to tell all

Seek = Callable[[float], bool]  # look in the DHT; whether such a search runs now


class Waits:
    """The waits of one node. Deadlines are as ``Context.ran`` counts: what is waited for comes while this runs."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._loop = asyncio.get_running_loop()
        self._born = self._loop.time()
        self._waiters: dict[asyncio.Future[None], None] = {}

    def on_news(self) -> None:
        """Wake every call that waits: the directory or a name has changed, or a search has ended."""
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def close(self) -> None:
        """End the waits for news: the node was closed."""
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(NodeClosed("the node was closed meanwhile"))

    @property
    def is_young(self) -> bool:
        """Whether this node has started a moment ago, and has much to hear yet."""
        return self._loop.time() - self._born < YOUNG_S

    def deadline(self) -> float:
        """Return until when an unknown name is waited for."""
        return self._runtime.stack.context.ran() + (FIND_YOUNG_S if self.is_young else FIND_S)

    async def news(self, deadline: float, seek: Seek) -> bool:
        """Wait for the next change, or the end of the search that ``seek`` begins; False when none comes in time."""
        ran = self._runtime.stack.context.ran
        if seek(self._loop.time()):
            deadline = max(deadline, ran() + SEARCH_S)
        while (left := deadline - ran()) > 0:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters[waiter] = None
            try:
                async with asyncio.timeout(left):
                    await waiter
            except TimeoutError:
                continue
            finally:
                self._waiters.pop(waiter, None)
            return True
        return False

    async def searched(self, seek: Seek) -> None:
        """Wait until a search has ended, if one is of use."""
        until = self._runtime.stack.context.ran() + SEARCH_S
        while seek(self._loop.time()) and await self.news(until, _no_search):
            pass


def _no_search(now: float) -> bool:
    return False
