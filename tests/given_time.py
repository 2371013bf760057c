"""Time as a test may measure it beside other work: seconds in which its processes could run when they wanted to.

What has to come within N seconds may be held to that on any machine: a node that gets a tenth of a core has ten times
as long. The kernel counts for each thread how long it could have run and did not (``schedstat`` of Linux; elsewhere it
is the time of the wall clock).
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from typing import AnyStr as Out

T = TypeVar("T")

HANG_S = 300.0  # of a command that has to end, however slowly: it fails a test that hangs, and promises nothing
LOOK_S = 0.05  # between two looks at what is over by the wall clock


class GivenTime:
    """A stopwatch of the wall clock that stands still while this process or one that it started waits for a CPU."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._before = 0.0
        self._waits: dict[str, int] = {}  # of each thread, nanoseconds; those of threads that have ended stay
        self._before = self._waits_now()

    @property
    def seconds(self) -> float:
        """Seconds since the start in which all of them could run when they wanted to."""
        return time.monotonic() - self._began - self.waited

    @property
    def waited(self) -> float:
        """Seconds that they waited since the start, all together: two that wait at once count twice."""
        return self._waits_now() - self._before

    def left_of(self, seconds: float) -> float:
        """Return how many of these seconds are left: nothing is read of threads before that many are over."""
        return max(0.0, seconds - (time.monotonic() - self._began)) or seconds - self.seconds

    def _waits_now(self) -> float:
        left = [str(os.getpid())]
        while left:
            with suppress(FileNotFoundError):  # the process has ended meanwhile
                for thread in list(os.scandir(f"/proc/{left.pop()}/task")):
                    with suppress(OSError, IndexError):  # it has ended meanwhile
                        self._waits[thread.name] = int(Path(thread.path, "schedstat").read_text().split()[1])
                        left += Path(thread.path, "children").read_text().split()
        return sum(self._waits.values()) / 1e9


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Do what ``asyncio.timeout`` does, with given time."""
    clock, loop = GivenTime(), asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:

        def look() -> None:
            nonlocal handle
            left = clock.left_of(seconds)
            if left > 0:
                handle = loop.call_later(max(left, LOOK_S), look)
            else:
                limit.reschedule(loop.time())

        handle = loop.call_later(seconds, look)
        try:
            yield
        finally:
            handle.cancel()


async def wait_for(what: Awaitable[T], seconds: float) -> T:
    """Do what ``asyncio.wait_for`` does, with given time."""
    async with within(seconds):
        return await what


def eventually(what: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until ``what`` is true; fail when it is not within so much given time."""
    clock = GivenTime()
    while not what():
        assert clock.left_of(seconds) > 0, "it did not come about in time"
        time.sleep(LOOK_S)


def status_of(process: subprocess.Popen[Any], seconds: float) -> int:
    """Wait for a process to end, as ``Popen.wait``, with given time."""
    return _patiently(lambda left: process.wait(left), seconds)


def output_of(process: subprocess.Popen[Out], seconds: float, said: Out | None = None) -> tuple[Out, Out]:
    """Say this to a process, and read until it ends, as ``Popen.communicate``, with given time."""
    return _patiently(lambda left: process.communicate(said, left), seconds)


def _patiently(wait: Callable[[float], T], seconds: float) -> T:
    clock = GivenTime()
    while True:
        left = clock.left_of(seconds)
        try:
            return wait(max(left, LOOK_S))
        except subprocess.TimeoutExpired:
            if left <= 0:
                raise
