"""Crowds on loopback: many connections through one forward, many peers that come once, a node that is paused.

``python -m bench.crowds [--short] [NAME ...]`` prints JSON, a line for each part. Each node is a process of its own.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import resource
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

from meshnode.daemon.client import call
from meshnode.daemon.requests.node import Peers
from meshnode.demo.stage import Process

BATCH = 20  # visitors of one process
MARKS = 10  # at which the memory of nodes with short connections is looked at
VISITORS = """
import asyncio, os, sys, meshnode
async def visit(number, seed, homes):
    node = meshnode.Node(meshnode.Config(home=f"{homes}/{number}", mdns=False, port_mapping=False, seeds=(seed,)))
    await node.start()
    try:
        await echo(node, seed)
    except ConnectionError:  # beside other work a process may not run for the idle timeout of 3 s
        await echo(node, seed)
    if number % 2:
        await node.close()
async def echo(node, seed):
    reader, writer = await node.open(seed.partition("@")[0], "echo")
    writer.write(b"once")
    assert await reader.readexactly(4) == b"once"
async def main(seed, homes, first, count):
    for number in range(first, first + count, 5):
        await asyncio.gather(*(visit(each, seed, homes) for each in range(number, number + 5)))
    print("done", flush=True)
    os._exit(0)  # those with even numbers vanish without a goodbye
asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
"""


@asynccontextmanager
async def pair(home: Path, **settings: object) -> AsyncIterator[tuple[Process, Process]]:
    """A seed and a node that knows it, with these settings each."""
    there, here = Process(home / "there", "127.0.4.160", ["seed"]), Process(home / "here", "127.0.4.161", ["up"])
    for process in (there, here):
        process.home.mkdir(mode=0o700)
        lines = (f"{name} = {json.dumps(value)}" for name, value in settings.items())
        (process.home / "meshnode.toml").write_text("\n".join(lines))
    await there.start()
    here.args += ["--seed", f"{there.id}@{there.endpoint}"]
    await here.start()
    try:
        yield there, here
    finally:
        await asyncio.gather(here.stop(), there.stop())


@asynccontextmanager
async def through(there: Process, here: Process) -> AsyncIterator[int]:
    """Give the local port of a forward to a TCP echo server beside the other node."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, backlog=2000)
    await there.ask("expose", name="echo", target=str(server.sockets[0].getsockname()[1]), allow=["any"])
    listen = (await here.ask("forward", listen="127.0.0.1:0", to=f"{there.id}/echo"))["listen"]
    yield int(listen.rpartition(":")[2])
    server.close()


def held(pid: int) -> tuple[int, int]:
    """Return the memory in kB and the descriptors of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024, len(os.listdir(f"/proc/{pid}/fd"))


async def at_once(home: Path, count: int, rounds: int = 3) -> dict[str, Any]:
    """Open so many connections at once, again and again; how many are served."""

    async def one(port: int, number: int) -> bool:
        try:
            async with asyncio.timeout(30):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"%d\n" % number)
                return await reader.readline() == b"%d\n" % number
        except OSError:
            return False
        finally:
            writer.close()

    async with pair(home) as (there, here), through(there, here) as port:
        served, began = [], time.monotonic()
        for _ in range(rounds):
            served.append(sum(await asyncio.gather(*(one(port, number) for number in range(count)))))
        return {"served": served, "of": count, "s": round(time.monotonic() - began, 1)}


async def short_ones(home: Path, count: int) -> dict[str, Any]:
    """Make short connections, a quarter of them broken off; what the nodes hold more than after the first tenth.

    ``kB_per_1000`` is the slope of the last two thirds (Theil and Sen), ``streams`` how many are left.
    """

    async def one(port: int, number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"%d\n" % number)
        if number % 4 == 0:
            writer.transport.abort()
            return
        await asyncio.wait_for(reader.readline(), 30)
        writer.close()

    async with pair(home) as (there, here), through(there, here) as port:
        nodes, marks, streams = (there, here), [], []
        for _ in range(MARKS):
            for first in range(0, count // MARKS, 50):
                await asyncio.gather(*(one(port, first + number) for number in range(50)))
            await asyncio.sleep(3)
            marks.append([held(process.pid) for process in nodes])
            streams.append(sum([await open_streams(process) for process in nodes]))
        grown = [
            (after[0] - before[0], after[1] - before[1]) for before, after in zip(marks[0], marks[-1], strict=True)
        ]
        slopes = (slope([mark[each][0] for mark in marks]) * 1000 * MARKS / count for each in range(len(nodes)))
        return {
            "grown_kB": max(each[0] for each in grown),
            "kB_per_1000": round(max(slopes), 1),
            "descriptors": max(each[1] for each in grown),
            "streams": streams[-1] - streams[0],
            "marks": marks,
        }


async def open_streams(process: Process) -> int:
    """Return how many streams a node has."""
    return await asyncio.to_thread(lambda: sum(int(peer["streams"]) for peer in call(process.home, Peers())))


def slope(values: list[int]) -> float:
    """Return by how much the last two thirds of a series grow from one value to the next: the median of all pairs."""
    late = list(enumerate(values))[len(values) // 3 :]
    return statistics.median((b - a) / (m - n) for (n, a), (m, b) in combinations(late, 2))


async def visitors(home: Path, count: int, idle: float = 3.0) -> dict[str, Any]:
    """Have peers come once, half of which vanish; the kB that each of the last two thirds leaves, and all
    descriptors.

    The kB are the median of the slopes between any two marks (Theil and Sen): one mark that garbage or a table which
    grows by doubling has raised moves it little. Counted from the first batch on, with which libuv opens its one spare
    descriptor.
    """
    async with pair(home, idle_timeout=idle) as (there, here), through(there, here):
        marks = []
        for number in range(0, count, BATCH):
            arguments = [f"{there.id}@{there.endpoint}", str(home / "visitors"), str(number), str(BATCH)]
            run = await asyncio.create_subprocess_exec(
                sys.executable, "-c", VISITORS, *arguments, stdout=asyncio.subprocess.PIPE
            )
            out, _ = await run.communicate()
            if out != b"done\n":
                raise SystemExit("bench.crowds: a visitor was not served")
            await asyncio.sleep(2 * idle)
            marks.append(held(there.pid))
        each = slope([kilobytes for kilobytes, _ in marks]) / BATCH
        return {"kB_each": round(each, 1), "descriptors": marks[-1][1] - marks[0][1], "marks": marks}


async def redis(home: Path, clients: int, requests: int = 20_000) -> dict[str, Any]:
    """Run ``redis-benchmark`` against a redis server, straight and through a forward; requests a second."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    quiet: dict[str, Any] = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.STDOUT}
    server = await asyncio.create_subprocess_exec(
        *("redis-server", "--port", port, "--bind", "127.0.0.1", "--save", ""), **quiet
    )

    async def load(at: str) -> dict[str, float]:
        options = ["-p", at, "-c", str(clients), "-n", str(requests), "-t", "set,get", "--csv"]
        run = await asyncio.create_subprocess_exec("redis-benchmark", *options, **quiet)
        out, _ = await asyncio.wait_for(run.communicate(), 120)
        rows = {row[0]: float(row[1]) for row in csv.reader(out.decode().splitlines()) if row[0] in ("SET", "GET")}
        return rows if run.returncode == 0 else {}

    try:
        async with pair(home) as (there, here):
            await there.ask("expose", name="redis", target=port, allow=["any"])
            listen = (await here.ask("forward", listen="127.0.0.1:0", to=f"{there.id}/redis"))["listen"]
            return {"straight": await load(port), "forward": await load(listen.rpartition(":")[2])}
    finally:
        server.kill()
        await server.communicate()


async def paused(home: Path, seconds: float) -> dict[str, Any]:
    """Stop each node of a stream for so long (SIGSTOP); seconds from its end to the last echo, and whether all came."""
    async with pair(home) as (there, here), through(there, here) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        late, number = [], 0
        for process in (here, there):
            os.kill(process.pid, signal.SIGSTOP)
            end = time.monotonic() + seconds
            first = number
            while time.monotonic() < end:
                writer.write(b"%d\n" % number)
                number += 1
                await asyncio.sleep(0.02)
            os.kill(process.pid, signal.SIGCONT)
            began = time.monotonic()
            for each in range(first, number):
                if await asyncio.wait_for(reader.readline(), 30) != b"%d\n" % each:
                    return {"late_s": [], "whole": False}
            late.append(round(time.monotonic() - began, 2))
        writer.close()
        return {"late_s": late, "whole": True}


def run(short: bool = False, *names: str) -> dict[str, Any]:
    """Return the figures of the parts of these names, or of all."""
    return dict(parts(short, *names))


def parts(short: bool = False, *names: str) -> Iterator[tuple[str, Any]]:
    """Measure one part after the other."""
    work: dict[str, tuple[Any, int]] = {
        "at_once": (at_once, 1000),
        "short_ones": (short_ones, 1000 if short else 24_000),
        "visitors": (visitors, 120 if short else 240),
        "paused": (paused, 3 if short else 12),
    }
    if shutil.which("redis-benchmark"):
        work["redis"] = (redis, 200)
    if wrong := set(names) - set(work):
        raise SystemExit(f"bench.crowds: no part is called {', '.join(wrong)}; there are {', '.join(work)}")
    for name, (measure, size) in work.items():
        if not names or name in names:
            with tempfile.TemporaryDirectory() as home:
                yield name, asyncio.run(measure(Path(home), size))


if __name__ == "__main__":
    for part, figures in parts("--short" in sys.argv, *[word for word in sys.argv[1:] if not word.startswith("-")]):
        print(json.dumps({part: figures}), flush=True)
