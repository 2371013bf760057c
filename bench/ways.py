"""Throughput and echo of every way to use a service, beside a stream of the SDK and loopback TCP, in one run.

Two processes: one serves, one uses the ways. A way's load is always beside the same load of a stream, in pieces of a
tenth of a second and in changing order, and its share is the median of these pairs: a machine is faster now than a
second later, by half at times, and no two loads further apart can be compared. A row of ``WAYS`` is a way; its ``open``
gives a reader and a writer, so all have the same load. The programs at both ends run in these two processes, so what
they and the kernel take is in a way's figures: the row ``direct`` has that alone. They read as a stream's own reader
does, in pieces and uncopied (``bench/program.py``); asyncio's StreamReader, which copies each byte twice, is measured
by no row. The row ``stream`` is a stream beside a stream: how far its share is from 1 is what the run cannot tell. An
HTTP library has a share of its own on loopback (``httpx_direct``), and over the mesh (``httpx``) no more than that.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Any

from bench import http_ways, loads
from bench.program import ProgramReader, opened

NODE: dict[str, Any] = {"listen": "127.0.0.1:0", "mdns": False}
STREAM = "stream"


@dataclass(frozen=True, slots=True)
class Place:
    """What a way may use: this process's node, the node that serves, and ports of TCP on loopback."""

    node: Any
    peer: str
    process: int  # that serves
    target: int  # of the program that is exposed as the service ``tcp``
    web: int  # of the program that is the service ``http`` too
    forward: int  # of this node's forward to that service
    proxy: int  # of this node's proxy
    attached: Any  # this node by its control socket


@dataclass(frozen=True, slots=True)
class Loads:
    """What is done by a way: MB/s up and down, the p50 and p99 of an echo, and echoes a second of many at once."""

    up: Callable[[Any, int], Awaitable[float]] = loads.bulk
    down: Callable[[Any, int], Awaitable[float]] = loads.bulk_down
    echo: Callable[[Any, int], Awaitable[tuple[float, float]]] = loads.echo
    at_once: Callable[[Any, int], Awaitable[float]] = loads.at_once


BY_HTTP = Loads(http_ways.up, http_ways.down, http_ways.echo, http_ways.at_once)


@dataclass(frozen=True, slots=True)
class Way:
    """One way: its name, how it is opened, and the least share of a stream's throughput; None for no target."""

    name: str
    open: Callable[[Place], Awaitable[Any]]
    least: float | None
    loads: Loads = Loads()


# ---- the serving process: the same handler behind each way


async def _handle(reader: Any, writer: Any, peer: Any = None) -> None:
    await loads.serve(reader, writer)
    writer.close()


def _protocol() -> ProgramReader:
    return ProgramReader(_handle)


async def _echo(flow: Any, peer: Any) -> None:
    async for data in flow:
        flow.send(data)


async def _serve(pipe: Pipe) -> None:
    from meshnode import Config, Node
    from meshnode.services.registry import ServiceBook

    target = await asyncio.get_running_loop().create_server(_protocol, "127.0.0.1", 0)
    port = target.sockets[0].getsockname()[1]
    web = await asyncio.get_running_loop().create_server(lambda: ProgramReader(http_ways.serve), "127.0.0.1", 0)
    with tempfile.TemporaryDirectory() as folder:
        async with Node(Config(home=folder, **NODE)) as node:
            node.serve("stream", _handle, allow=["any"])
            node.serve_datagrams("datagrams", _echo, allow=["any"])
            await node.create_server(_protocol, "protocol", allow=["any"])
            await ServiceBook(node).expose("tcp", f"tcp://127.0.0.1:{port}", ("any",))
            node.serve("http", http_ways.serve, allow=["any"])
            pipe.send((f"{node.id}@{node.record.endpoints[0]}", port, web.sockets[0].getsockname()[1]))
            await asyncio.get_running_loop().run_in_executor(None, pipe.recv)


def _process(pipe: Pipe) -> None:
    asyncio.run(_serve(pipe))


# ---- the ways


def _tcp(port: int) -> Awaitable[tuple[Any, Any]]:
    return opened(lambda made: asyncio.get_running_loop().create_connection(made, "127.0.0.1", port))


def _open_protocol(place: Place) -> Awaitable[tuple[Any, Any]]:
    return opened(lambda made: place.node.create_connection(made, place.peer, "protocol"))


async def _open_socket(place: Place) -> tuple[Any, Any]:
    sock = await place.node.socket(place.peer, "stream")
    return await opened(lambda made: asyncio.get_running_loop().create_unix_connection(made, sock=sock))


async def _open_socks5(place: Place) -> tuple[Any, Any]:
    reader, writer = await _tcp(place.proxy)
    host = f"tcp.{place.peer}.mesh".encode()
    writer.write(b"\x05\x01\x00\x05\x01\x00\x03" + bytes([len(host)]) + host + b"\x00\x50")
    await reader.readexactly(12)
    return reader, writer


async def _httpx_direct(place: Place) -> Any:
    import httpx2

    return httpx2.AsyncClient(base_url=f"http://127.0.0.1:{place.web}", trust_env=False, verify=False)


async def _httpx(place: Place) -> Any:
    import httpx2

    from meshnode.ext.httpx2 import MeshTransport

    return httpx2.AsyncClient(transport=MeshTransport(place.node), base_url=f"http://{place.peer}.mesh")


WAYS = (
    Way("direct", lambda place: _tcp(place.target), None),
    Way(STREAM, lambda place: place.node.open(place.peer, "stream"), None),
    Way("create_connection", _open_protocol, 0.7),
    Way("socket", _open_socket, 0.7),
    Way("forward", lambda place: _tcp(place.forward), 0.75),
    Way("socks5", _open_socks5, 0.7),
    Way("attach", lambda place: place.attached.open(place.peer, "stream"), 0.7),
    Way("httpx_direct", _httpx_direct, None, BY_HTTP),
    Way("httpx", _httpx, None, BY_HTTP),
)


# ---- measuring


@dataclass(frozen=True, slots=True)
class Work:
    """How much is done in one run."""

    rounds: int = 10
    megabytes: int = 24  # of one load
    echoes: int = 400


SHORT = Work(4, 12, 200)
DIRECTIONS = ("up", "down")


async def _datagrams(place: Place, work: Work) -> dict[str, float]:
    """Echo datagrams one by one, then as many as are on their way at once."""
    size, count = 1_000, work.megabytes * 500
    async with await place.node.datagrams(place.peer, "datagrams") as flow:
        times = []
        for _ in range(work.echoes):
            started = time.perf_counter()
            flow.send(bytes(loads.MESSAGE))
            await asyncio.wait_for(flow.receive(), 5)
            times.append(time.perf_counter() - started)
        back, started = 0, time.perf_counter()

        async def receive() -> None:
            nonlocal back
            async for _ in flow:
                back += 1

        receiving = asyncio.create_task(receive())
        for number in range(count):
            if not flow.send(bytes(size)) or number % 32 == 31:
                await asyncio.sleep(0)
        took = time.perf_counter() - started
        receiving.cancel()
    return {"echo_p50_us": statistics.median(times) * 1e6, "echoed_MBps": back * size / took / 1e6}


async def _loaded(place: Place, way: Way, name: str, megabytes: int) -> dict[str, float]:
    """Put one load on a way: MB/s, and the CPU of both processes."""
    cpu = loads.BusierCpu(place.process)
    load = way.loads.up if name == "up" else way.loads.down
    speed = await load(lambda: way.open(place), megabytes)
    here, there = (used * 1000 / (megabytes * 1.048576) for used in cpu.each())
    return {"MBps": speed, "here": here, "there": there, "busier": max(here, there)}


async def _pair(place: Place, way: Way, base: Way, number: int, work: Work) -> dict[str, float]:
    """Measure a way beside a stream; which of them is first changes with ``number``."""
    found: dict[str, float] = {}
    cpu: dict[str, list[float]] = {}
    for name in DIRECTIONS:
        pair = [await _loaded(place, one, name, work.megabytes) for one in ((way, base), (base, way))[number % 2]]
        own, its = pair[:: -1 if number % 2 else 1]
        found |= {f"{name}_MBps": own["MBps"], f"{name}_of_stream": own["MBps"] / its["MBps"]}
        for key, value in (*own.items(), ("of_stream", own["busier"] / its["busier"])):
            cpu.setdefault(key, []).append(value)
    found["echo_p50_us"], _ = await way.loads.echo(lambda: way.open(place), work.echoes)
    found["echoes_at_once"] = await way.loads.at_once(lambda: way.open(place), work.echoes * 5)
    names = {
        "here": "here_ms_per_MB",
        "there": "there_ms_per_MB",
        "busier": "cpu_ms_per_MB",
        "of_stream": "cpu_of_stream",
    }
    return found | {told: statistics.mean(cpu[key]) for key, told in names.items()}


async def _measured(process: int, seed: str, target: int, web: int, work: Work) -> dict[str, list[dict[str, float]]]:
    from meshnode import Config, Node, attach
    from meshnode.daemon.context import Daemon
    from meshnode.daemon.server import ControlServer
    from meshnode.sdk.node import runtime_of
    from meshnode.services.forward import Forward
    from meshnode.services.proxy.book import ProxyBook
    from meshnode.services.registry import ServiceBook

    found: dict[str, list[dict[str, float]]] = {way.name: [] for way in WAYS} | {"datagrams": []}
    with tempfile.TemporaryDirectory() as folder:
        async with Node(Config(home=folder, seeds=(seed,), **NODE)) as node:
            peer = seed.partition("@")[0]
            forward = Forward(node, "127.0.0.1:0", peer, "tcp")
            listen = await forward.start()
            proxies = ProxyBook(node)
            proxy = (await proxies.start("127.0.0.1:0"))["listen"]
            daemon = Daemon(node, ServiceBook(node), proxies)
            control = ControlServer(daemon, node.config.home_path, runtime_of(node).sockets.accepted)
            await control.start()
            attached = attach(folder)
            await attached.start()
            ports = [int(text.rpartition(":")[2]) for text in (listen, proxy)]
            place = Place(node, peer, process, target, web, *ports, attached)
            base = next(way for way in WAYS if way.name == STREAM)
            for number in range(work.rounds):
                for way in WAYS:
                    found[way.name].append(await _pair(place, way, base, number, work))
                found["datagrams"].append(await _datagrams(place, work))
            await control.close()
            await proxies.close()
            await forward.close()
    return found


def run(work: Work = Work()) -> dict[str, dict[str, float]]:
    """Return the medians of each way; ``of_stream`` is its share of a stream's throughput in the worse direction.

    ``cpu_ms_per_MB`` is that of the busier process, which bounds a way where each has a core: of this one (``here``),
    with the program, its node and what is between, or of the serving one (``there``). ``echoes_at_once`` is how many
    echoes a second come back while 64 are under way on one stream.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_process, args=(there,), daemon=True)
    process.start()
    try:
        rounds = asyncio.run(_measured(process.pid or 0, *here.recv(), work))
    finally:
        here.send(None)
        process.join(3)
        process.kill()
    found = {
        name: {key: round(statistics.median(one[key] for one in several), 2) for key in several[0]}
        for name, several in rounds.items()
    }
    for way in WAYS:
        own = found[way.name]
        own["of_stream"] = min(own[f"{name}_of_stream"] for name in DIRECTIONS)
    return found


if __name__ == "__main__":
    print(json.dumps(run(SHORT if "--short" in sys.argv else Work()), indent=1))
