"""Memory while a sender that never pauses writes to a reader that does: two processes, one stream, loopback.

``run`` returns how much each process grew, as its highest resident size during the transfer over the size at its start.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

CHUNK = 1 << 16
SERVICE = "slow"
DEADLINE_S = 900.0


def _memory_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}")


class Growth:
    """How much this process grew since its construction, in MB."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak (VmHWM) is reset
        self._before = _memory_mb("VmRSS")

    def __float__(self) -> float:
        return _memory_mb("VmHWM") - self._before


async def _reader(pipe: Pipe, rate: float) -> None:
    from meshnode import Config, Node

    done = asyncio.Event()
    result: list[float] = []

    async def handler(reader: Any, writer: Any, peer: Any) -> None:
        growth, started, total = Growth(), time.perf_counter(), 0
        writer.write(b"go")
        while data := await reader.read(CHUNK):
            total += len(data)
            await asyncio.sleep(max(0.0, started + total / rate - time.perf_counter()))
        result.extend((float(total), float(growth), time.perf_counter() - started))
        writer.write_eof()
        done.set()

    with tempfile.TemporaryDirectory() as folder:
        async with Node(Config(home=folder, listen="127.0.0.1:0", mdns=False)) as node:
            node.serve(SERVICE, handler, allow=["any"])
            pipe.send(f"{node.id}@{node.record.endpoints[0]}")
            await asyncio.wait_for(done.wait(), DEADLINE_S)
            pipe.send(result)
            await asyncio.get_running_loop().run_in_executor(None, pipe.recv)


async def _sender(pipe: Pipe, seed: str, size: int) -> None:
    from meshnode import Config, Node

    with tempfile.TemporaryDirectory() as folder:
        async with Node(Config(home=folder, listen="127.0.0.1:0", mdns=False, seeds=(seed,))) as node:
            reader, writer = await node.open(seed.partition("@")[0], SERVICE)
            await reader.readexactly(2)  # everything is loaded
            growth, chunk = Growth(), bytes(CHUNK)
            for _ in range(size // CHUNK):
                writer.write(chunk)
                await writer.drain()
            writer.write_eof()
            await reader.read()
            pipe.send(float(growth))


def _serve(pipe: Pipe, rate: float) -> None:
    asyncio.run(_reader(pipe, rate))


def _send(pipe: Pipe, seed: str, size: int) -> None:
    asyncio.run(_sender(pipe, seed, size))


def run(megabytes: int = 500, rate_mb: float = 2.0) -> dict[str, float]:
    """Send ``megabytes`` to a reader that takes ``rate_mb`` a second; growth in MB. Raises TimeoutError."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    mine, yours = context.Pipe()
    server = context.Process(target=_serve, args=(there, rate_mb * 1e6), daemon=True)
    server.start()
    size = int(megabytes * 1e6) // CHUNK * CHUNK
    client = context.Process(target=_send, args=(yours, here.recv(), size), daemon=True)
    client.start()
    try:
        for pipe in (here, mine):
            if not pipe.poll(DEADLINE_S):
                raise TimeoutError("the transfer did not end")
        total, reader, seconds = here.recv()
        sender = mine.recv()
        here.send(None)
        if total != size:
            raise AssertionError(f"{total:.0f} of {size} bytes came")
    finally:
        for process in (client, server):
            process.join(3)
            process.kill()
    return {
        "megabytes": megabytes,
        "rate_MBps": round(total / seconds / 1e6, 2),
        "sender_MB": round(sender, 1),
        "reader_MB": round(reader, 1),
    }


if __name__ == "__main__":
    print(json.dumps(run(60, 20.0) if "--short" in sys.argv else run()))
