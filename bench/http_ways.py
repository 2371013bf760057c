"""The loads of ``bench/ways.py`` by an HTTP library: httpx2 on loopback, and by its adapter over the mesh.

The server is a program of few lines that copies no body, so what is measured is the library, the adapter and the way
between. What the library itself takes is in both rows.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from bench.loads import AT_ONCE, CHUNK, MESSAGE, WARM_UP

Client = Callable[[], Awaitable[Any]]
END = b"\r\n\r\n"
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


async def serve(reader: Any, writer: Any, peer: Any = None) -> None:
    """Answer each request, whose body is dropped, with as many bytes as its path names."""
    data = b""
    while True:
        while (end := data.find(END)) < 0:
            piece = await reader.read(1 << 16)
            if not piece:
                writer.close()
                return
            data += piece
        head, data = data[:end], data[end + len(END) :]
        length = _LENGTH.search(head)
        missing = (int(length[1]) if length else 0) - len(data)
        data = b""
        while missing > 0:
            missing -= len(await reader.read(1 << 18))
        size = int(head.split(b" ", 2)[1][1:])
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        while size:
            piece = CHUNK[:size]
            writer.write(piece)
            await writer.drain()
            size -= len(piece)


async def up(client_of: Client, megabytes: int) -> float:
    """Return MB/s (10^6 bytes) of one body to the server."""

    async def body() -> AsyncIterator[bytes]:
        for _ in range(megabytes * 4):
            yield CHUNK

    async with await client_of() as client:
        started = time.perf_counter()
        answer = await client.post("/1", content=body(), headers={"content-length": str(megabytes << 20)})
        took = time.perf_counter() - started
        assert len(answer.content) == 1
    return megabytes * 1.048576 / took


async def down(client_of: Client, megabytes: int) -> float:
    """Return MB/s (10^6 bytes) of one body from the server."""
    missing = megabytes << 20
    async with await client_of() as client:
        started = time.perf_counter()
        async with client.stream("GET", f"/{missing}") as answer:
            async for data in answer.aiter_raw():
                missing -= len(data)
        took = time.perf_counter() - started
    assert missing == 0
    return megabytes * 1.048576 / took


async def echo(client_of: Client, count: int) -> tuple[float, float]:
    """Return p50 and p99 of a request of 64 bytes and its answer of 64, in microseconds."""
    times = []
    async with await client_of() as client:
        for _ in range(count + WARM_UP):
            started = time.perf_counter()
            await client.post(f"/{MESSAGE}", content=bytes(MESSAGE))
            times.append(time.perf_counter() - started)
    del times[:WARM_UP]
    return statistics.median(times) * 1e6, statistics.quantiles(times, n=100)[98] * 1e6


async def at_once(client_of: Client, count: int) -> float:
    """Return requests a second with ``AT_ONCE`` under way, each on a connection that is used again."""
    async with await client_of() as client:

        async def requests() -> None:
            for _ in range(count // AT_ONCE):
                await client.post(f"/{MESSAGE}", content=bytes(MESSAGE))

        started = time.perf_counter()
        await asyncio.gather(*(requests() for _ in range(AT_ONCE)))
        return count // AT_ONCE * AT_ONCE / (time.perf_counter() - started)
