"""Loads on open streams, for any reader and writer with asyncio's semantics, and the CPU time of a process."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

Handler = Callable[[Any, Any], Coroutine[Any, Any, None]]
Open = Callable[[], Awaitable[tuple[Any, Any]]]

SINK, SOURCE, ECHO = b"B", b"D", b"E"  # the first byte of a stream
CHUNK = bytes(1 << 18)
MESSAGE = 64  # bytes of a request and of its answer
AT_ONCE = 64
WARM_UP = 100


async def serve(reader: Any, writer: Any, first: bytes = b"") -> None:
    """Serve one stream, whose ``first`` byte may be read already.

    SINK takes as many bytes as it names and answers with one, SOURCE sends as many, anything else echoes.
    """
    first = first or await reader.readexactly(1)
    if first == SINK:
        rest = int.from_bytes(await reader.readexactly(8), "big")
        while rest > 0:
            rest -= len(await reader.read(1 << 18))
        writer.write(SINK)
    elif first == SOURCE:
        for _ in range(int.from_bytes(await reader.readexactly(8), "big") // len(CHUNK)):
            writer.write(CHUNK)
            await writer.drain()
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process's threads."""
    used = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
            used += int(path.read_text().split()[0])
    return used / 1e9


class BusierCpu:
    """CPU of this process and of a server since the last look; the busier counts."""

    def __init__(self, server: int) -> None:
        self._pids = os.getpid(), server
        self._last = [cpu_s(pid) for pid in self._pids]

    def each(self) -> tuple[float, float]:
        """Return the seconds that this process and the server have used since the last call."""
        now = [cpu_s(pid) for pid in self._pids]
        here, there = (a - b for a, b in zip(now, self._last, strict=True))
        self._last = now
        return here, there

    def busier(self) -> float:
        """Return the seconds that the busier of the two has used since the last call."""
        return max(self.each())


async def bulk(open_: Open, megabytes: int) -> float:
    """Return MB/s (10^6 bytes) up one stream."""
    reader, writer = await open_()
    started = time.perf_counter()
    writer.write(SINK + (megabytes << 20).to_bytes(8, "big"))
    for _ in range(megabytes * 4):
        writer.write(CHUNK)
        await writer.drain()
    assert await reader.readexactly(1) == SINK
    took = time.perf_counter() - started
    writer.close()
    return megabytes * 1.048576 / took


async def bulk_down(open_: Open, megabytes: int) -> float:
    """Return MB/s (10^6 bytes) down one stream."""
    reader, writer = await open_()
    rest = megabytes << 20
    started = time.perf_counter()
    writer.write(SOURCE + rest.to_bytes(8, "big"))
    while rest > 0:
        data = await reader.read(1 << 18)
        if not data:
            raise EOFError("the stream ended early")
        rest -= len(data)
    took = time.perf_counter() - started
    writer.close()
    return megabytes * 1.048576 / took


async def echo(open_: Open, count: int) -> tuple[float, float]:
    """Return p50 and p99 of an echo in microseconds."""
    reader, writer = await open_()
    times = []
    writer.write(ECHO)
    for number in range(count + WARM_UP):
        started = time.perf_counter()
        writer.write(bytes(MESSAGE))
        await reader.readexactly(MESSAGE)
        if number >= WARM_UP:
            times.append(time.perf_counter() - started)
    writer.close()
    return statistics.median(times) * 1e6, statistics.quantiles(times, n=100)[98] * 1e6


async def at_once(open_: Open, count: int) -> float:
    """Return echoes a second with ``AT_ONCE`` under way on one stream."""
    reader, writer = await open_()
    writer.write(ECHO)
    message = bytes(MESSAGE)
    started = time.perf_counter()
    for _ in range(AT_ONCE):
        writer.write(message)
    for number in range(count):
        await reader.readexactly(MESSAGE)
        if number < count - AT_ONCE:
            writer.write(message)
    took = time.perf_counter() - started
    writer.close()
    return count / took


async def a_stream_each(open_: Open, count: int, gather: Callable[..., Awaitable[Any]] = asyncio.gather) -> float:
    """Return requests a second with ``AT_ONCE`` under way, each on a stream of its own."""

    async def requests(number: int) -> None:
        for _ in range(number):
            reader, writer = await open_()
            writer.write(ECHO + bytes(MESSAGE))
            writer.write_eof()
            assert len(await reader.read(-1)) == MESSAGE
            writer.close()

    started = time.perf_counter()
    await gather(*(requests(count // AT_ONCE) for _ in range(AT_ONCE)))
    return count // AT_ONCE * AT_ONCE / (time.perf_counter() - started)
