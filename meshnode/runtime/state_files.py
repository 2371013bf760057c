"""State files of a home: read whatever they hold, and written by a thread of their own.

No content of a state file stops a start: what cannot be read is set aside under another name, with a warning. And no
write is on the path of a move or a stream: a disk may take seconds for an fsync, be full or read-only. The key is no
state file: it is never replaced by another.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import field
from pathlib import Path
from typing import TypeVar

from meshnode.base.files import write_atomic
from meshnode.base.refusals import refusal
from meshnode.base.value import state
from meshnode.runtime.background import begin, os_error
from meshnode.runtime.files import HomeLock

T = TypeVar("T")

MAX_STATE = 4 << 20  # bytes of one file; services.json with 1,000 services has 200 kB
RETRY_S = (1.0, 2.0, 5.0, 10.0)  # between attempts to write: a disk that has room again is used within seconds
CLOSE_S = 5.0  # the end of a node waits no longer for the disk
NO_FILE = (errno.EISDIR, errno.ENXIO, errno.ENODEV)  # a directory, a socket or a device is in the place of the file
log = logging.getLogger("meshnode.node")


def read_state(path: Path, parse: Callable[[bytes], T]) -> T | None:
    """Return what ``parse`` makes of a file; None when there is none, or when it is of no use.

    A file for which ``parse`` raises ValueError, TypeError, LookupError, AttributeError, OverflowError or
    RecursionError is set aside, with a warning.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO in its place must not block
        with os.fdopen(fd, "rb") as file:
            data = file.read(MAX_STATE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in NO_FILE:
            set_aside(path, refusal(error, path)[0])
        else:
            log.warning("cannot read %s: %s", path, refusal(error, path)[0])
        return None
    try:
        if len(data) > MAX_STATE:
            raise ValueError(f"more than {MAX_STATE} bytes")
        return parse(data)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        set_aside(path, f"{type(error).__name__}: {str(error)[:100]}")
        return None


def set_aside(path: Path, why: str) -> None:
    """Rename a damaged file to ``NAME.damaged``, in place of an earlier one, and say so."""
    aside = path.with_name(f"{path.name}.damaged")
    if aside.is_dir():
        aside = path.with_name(f"{path.name}.damaged-{os.getpid()}")
    try:
        os.replace(path, aside)
    except OSError as error:
        log.warning("%s is damaged (%s) and cannot be set aside: %s", path, why, refusal(error, path)[0])
    else:
        log.warning("%s is damaged (%s): the node goes on without it; it is kept as %s", path, why, aside.name)


@state
class _Write:
    """Contents that wait to be written, and the callers that wait for it."""

    data: bytes
    callers: list[asyncio.Future[None]] = field(default_factory=list)
    may: Callable[[], bool] | None = None  # asked before it is written


@state
class _Failure:
    """A file that could not be written."""

    reason: str
    since: float
    retry_at: float
    attempts: int = 1


class StateFiles:
    """Writer of a home's state files: in a thread, one after the other, the newest contents of each.

    It belongs to one asyncio loop, and to a process that holds the home's lock, which is to be released after
    ``close``.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, lock: HomeLock) -> None:
        self.home = lock.home
        self.lock = lock
        self._loop = loop
        self._queue: dict[str, _Write] = {}  # by file name
        self._failures: dict[str, _Failure] = {}
        self._damaged: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._busy = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    def read(self, name: str, parse: Callable[[bytes], T]) -> T | None:
        """Return what ``read_state`` makes of a file; where it is lost, ``degraded`` tells so until the node ends."""
        was_there = os.path.lexists(self.home / name)
        found = read_state(self.home / name, parse)
        if found is None and was_there:
            self._damaged.append(name)
        return found

    def save(self, name: str, data: bytes, may: Callable[[], bool] | None = None) -> None:
        """Write a file soon; where that fails, again until it is written.

        Told in ``degraded`` meanwhile. ``may`` is asked in the thread that writes, and stops it: a file that others
        write too is theirs then.
        """
        self._put(name, data, may=may)

    async def write(self, name: str, data: bytes) -> None:
        """Write a file once.

        Raises OSError: the file is as it was, and it is not tried again.
        """
        done: asyncio.Future[None] = self._loop.create_future()
        self._put(name, data, done)
        await done

    async def idle(self) -> None:
        """Wait until nothing is being written, but what failed and is to be tried again."""
        await self._idle.wait()

    def degraded(self) -> list[str]:
        """Return what cannot be saved, and what was lost, in words; empty while the disk works."""
        now = self._loop.time()
        failing = [
            f"{name} cannot be saved: {failure.reason} (for {now - failure.since:.0f} s; tried again by itself)"
            for name, failure in self._failures.items()
        ]
        return [*failing, *(f"{name} was damaged: the node has begun without what it held" for name in self._damaged)]

    async def close(self) -> None:
        """Write what waits, what failed once more, for ``CLOSE_S`` at most.

        Nothing is written afterwards.
        """
        for failure in self._failures.values():
            failure.retry_at = 0.0
        self._next()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._idle.wait()
        except TimeoutError:
            log.warning("the disk is too slow: not all of the node's state was saved")
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def finish(self) -> None:
        """Write what waits here and now, once; nothing is written afterwards.

        For an end that cannot wait.
        """
        waiting, self._queue, self._closed = self._queue, {}, True
        for name, work in waiting.items():
            if name not in self._failures:
                with suppress(OSError):
                    if work.may is None or work.may():
                        write_atomic(self.home / name, work.data)

    def _put(
        self,
        name: str,
        data: bytes,
        caller: asyncio.Future[None] | None = None,
        may: Callable[[], bool] | None = None,
    ) -> None:
        waiting = self._queue.setdefault(name, _Write(data))
        waiting.data, waiting.may = data, may
        if caller is not None:
            waiting.callers.append(caller)
        self._next()

    def _next(self) -> None:
        """Begin the next write that is due, unless one runs."""
        if self._busy:
            return
        if self._closed:
            self._idle.set()
            return
        now = self._loop.time()
        for name, waiting in self._queue.items():
            failure = self._failures.get(name)
            if failure is None or failure.retry_at <= now or waiting.callers:
                break
        else:
            self._idle.set()
            if self._queue:
                self._retry_at(min(self._failures[name].retry_at for name in self._queue))
            return
        self._busy = True
        self._idle.clear()
        work = self._queue.pop(name)
        try:
            begin(self._work, name, work)
        except RuntimeError:  # there is no thread to be had: rather a late stream than lost state
            self._work(name, work)

    def _retry_at(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._next)

    def _work(self, name: str, work: _Write) -> None:
        failed: OSError | None = None
        try:
            if work.may is None or work.may():
                write_atomic(self.home / name, work.data)
        except Exception as error:
            failed = os_error(error)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._done, name, work, failed)

    def _done(self, name: str, work: _Write, failed: OSError | None) -> None:
        self._busy = False
        if failed is None:
            if self._failures.pop(name, None) is not None:
                log.warning("%s is saved again", name)
        elif not work.callers and not self._closed:
            self._queue.setdefault(name, work)  # unless there are newer contents
            self._fail(name, failed)
        for caller in work.callers:
            if caller.done():
                continue  # it has gone
            if failed is not None:
                caller.set_exception(failed)
            else:
                caller.set_result(None)
        self._next()

    def _fail(self, name: str, error: OSError) -> None:
        now, failure = self._loop.time(), self._failures.get(name)
        if failure is None:
            reason, hint = refusal(error, self.home / name)
            self._failures[name] = _Failure(reason, now, now + RETRY_S[0])
            log.warning("cannot save %s: %s; the node goes on and tries again. To mend it: %s", name, reason, hint)
        else:
            failure.retry_at = now + RETRY_S[min(failure.attempts, len(RETRY_S) - 1)]
            failure.attempts += 1
