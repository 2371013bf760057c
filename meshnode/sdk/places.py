"""Places of a service, and those that wait for one: no peer, host or network keeps them from the others.

While places are free they go to whichever stream asks. When there are none, a stream waits; after ``TAKE_S`` it takes
the place of the newest stream of the network with most, in that of the host and in that of the peer with most, unless
that would be its own.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Hashable

from meshnode.base.fair_table import FairTable

MAX_WAITING = 512  # streams over a service's limit that wait; of more, those of the largest share are refused
TAKE_S = 1.0  # until a stream that waits takes a place from those that have most: most streams are over by then
WAIT_S = 10.0  # until a stream over the limit is refused

Groups = tuple[Hashable, ...]
Turn = asyncio.Future[bool]


class Places:
    """Places for tasks. A task calls ``take``, and ``leave`` at its end, whatever that answered."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running: FairTable[asyncio.Task[None]] = FairTable(limit, newest_goes=True)
        self._waiting: FairTable[asyncio.Task[None]] = FairTable(MAX_WAITING, newest_goes=True)
        self._turns: OrderedDict[asyncio.Task[None], tuple[Turn, Groups]] = OrderedDict()

    async def take(self, *groups: Hashable) -> bool:
        """Wait for a place; False when there is none in time, or too many wait.

        ``groups`` are those of the task's source, the widest first. The task that holds a place is cancelled when
        another takes it.
        """
        task = _current()
        if len(self._running) < self._limit:
            self._running.add(task, *groups)
            return True
        turn: Turn = asyncio.get_running_loop().create_future()
        self._turns[task] = turn, groups
        refused = self._waiting.add(task, *groups)
        if refused is not None:
            self._end_wait(refused, False)
        await asyncio.wait([turn], timeout=TAKE_S)
        if not turn.done() and self._push_out(task, groups):
            self._end_wait(task, True)
        if not turn.done():
            await asyncio.wait([turn], timeout=WAIT_S - TAKE_S)
        if not turn.done():
            self._end_wait(task, False)
        return turn.result()

    def _push_out(self, task: asyncio.Task[None], groups: Groups) -> bool:
        gone = self._running.add(task, *groups)
        if gone is not None and gone is not task:
            gone.cancel()
        return gone is not task

    def _end_wait(self, task: asyncio.Task[None], has_place: bool) -> Groups:
        self._waiting.discard(task)
        turn, groups = self._turns.pop(task)
        turn.set_result(has_place)
        return groups

    def leave(self) -> None:
        """Free the place of this task, for the one that has waited longest, or give up its wait."""
        task = _current()
        if task in self._turns:  # cancelled meanwhile
            self._end_wait(task, False)
        if task not in self._running:
            return
        self._running.discard(task)
        if self._turns:
            longest = next(iter(self._turns))
            self._running.add(longest, *self._end_wait(longest, True))


def _current() -> asyncio.Task[None]:
    task = asyncio.current_task()
    assert task is not None
    return task
