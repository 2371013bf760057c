"""Bulk, echo, many at once and connect beside TLS over TCP and ``aioquic.asyncio``, in one run, in two processes.

Rounds are interleaved: each side has its turn in every round, so that what the machine does besides falls on all.
CPU is that of the busier end.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from bench import loads

SERVICE = "bench"
NODE: dict[str, Any] = {"listen": "127.0.0.1:0", "mdns": False}


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a self-signed certificate and its key, as ``crt`` and ``key``."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=9))
    paths = folder / "crt", folder / "key"
    paths[0].write_bytes(builder.sign(key, None).public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    paths[1].write_bytes(private)
    return paths


# ---- the servers: each says where it is, and serves until the pipe brings something


async def _tls_server(pipe: Pipe, engine: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate(Path(folder)))
        server = await asyncio.start_server(loads.serve, "127.0.0.1", 0, ssl=context)
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)


@asynccontextmanager
async def aioquic_server(host: str, handler: loads.Handler = loads.serve) -> AsyncIterator[int]:
    """Run aioquic's own asyncio API, as its documentation shows it; the context is the port."""
    from aioquic.asyncio import serve
    from aioquic.quic.configuration import QuicConfiguration

    with tempfile.TemporaryDirectory() as folder:
        configuration = QuicConfiguration(is_client=False, alpn_protocols=["bench"])
        configuration.load_cert_chain(*certificate(Path(folder)))
        tasks = set()

        def accept(reader: Any, writer: Any) -> None:
            task = asyncio.ensure_future(handler(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await serve(host, 0, configuration=configuration, stream_handler=accept)
        yield server._transport.get_extra_info("sockname")[1]


async def _aioquic_server(pipe: Pipe, engine: str) -> None:
    async with aioquic_server("127.0.0.1") as port:
        pipe.send(port)
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)


async def _mesh_server(pipe: Pipe, engine: str) -> None:
    from meshnode import Config, Node

    with tempfile.TemporaryDirectory() as folder:
        async with Node(Config(home=folder, engine=engine, **NODE)) as node:

            async def handler(reader: Any, writer: Any, peer: Any) -> None:
                await loads.serve(reader, writer)

            node.serve(SERVICE, handler, allow=["any"])
            pipe.send(f"{node.id}@{node.record.endpoints[0]}")
            await asyncio.get_running_loop().run_in_executor(None, pipe.recv)


def _serve(server: Callable[[Pipe, str], Awaitable[None]], pipe: Pipe, engine: str) -> None:
    asyncio.run(server(pipe, engine))  # type: ignore[arg-type]


# ---- the clients: a context in which streams can be opened


def _tls_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@asynccontextmanager
async def _tls_client(port: int, engine: str) -> AsyncIterator[loads.Open]:
    yield lambda: asyncio.open_connection("127.0.0.1", port, ssl=_tls_context())


def aioquic_configuration() -> Any:
    """Return what a client of aioquic's is configured with."""
    from aioquic.quic.configuration import QuicConfiguration

    return QuicConfiguration(is_client=True, alpn_protocols=["bench"], verify_mode=ssl.CERT_NONE)


@asynccontextmanager
async def _aioquic_client(port: int, engine: str) -> AsyncIterator[loads.Open]:
    from aioquic.asyncio import connect

    async with connect("127.0.0.1", port, configuration=aioquic_configuration()) as client:
        yield client.create_stream


@asynccontextmanager
async def _mesh_client(seed: str, engine: str) -> AsyncIterator[loads.Open]:
    from meshnode import Config, Node

    with tempfile.TemporaryDirectory() as folder:
        async with Node(Config(home=folder, seeds=(seed,), engine=engine, **NODE)) as node:
            yield lambda: node.open(seed.partition("@")[0], SERVICE)


# ---- connecting


async def _aioquic_connects(port: int, engine: str, count: int) -> list[float]:
    from aioquic.asyncio import connect

    times = []
    for _ in range(count):
        started = time.perf_counter()
        async with connect("127.0.0.1", port, configuration=aioquic_configuration()):
            times.append(time.perf_counter() - started)
    return times


async def _mesh_connects(seed: str, engine: str, count: int) -> list[float]:
    from meshnode import Config, Node

    peer, times = seed.partition("@")[0], []
    with tempfile.TemporaryDirectory() as folder:
        # without gossip, whose links would be there already
        async with Node(Config(home=folder, gossip=False, seeds=(seed,), engine=engine, **NODE)) as node:
            await node.resolve(peer)
            for _ in range(count):
                started = time.perf_counter()
                connection = await node.connect(peer)
                times.append(time.perf_counter() - started)
                connection.close()
                await asyncio.sleep(0.02)
    return times


@dataclass(frozen=True, slots=True)
class Side:
    """One transport: its server, its client, and what measures a connect, where that is compared."""

    name: str
    server: Callable[[Pipe, str], Awaitable[None]]
    client: Callable[[Any, str], Any]
    connects: Callable[[Any, str, int], Awaitable[list[float]]] | None


SIDES = (
    Side("tls", _tls_server, _tls_client, None),
    Side("aioquic", _aioquic_server, _aioquic_client, _aioquic_connects),
    Side("meshnode", _mesh_server, _mesh_client, _mesh_connects),
)


@dataclass(frozen=True, slots=True)
class Work:
    """How much is done in one measurement; 0 leaves it out."""

    rounds: int = 5
    megabytes: int = 64
    echoes: int = 2000
    connects: int = 20
    at_once: int = 20_000
    each: int = 2048


SHORT = Work(2, 24, 500, 10, 5000, 512)


async def _measure(side: Side, where: Any, pid: int, engine: str, work: Work) -> dict[str, float]:
    found: dict[str, float] = {}
    if side.connects is not None and work.connects:
        times = await side.connects(where, engine, work.connects)
        found["connect_p50_ms"] = statistics.median(times) * 1000
    async with side.client(where, engine) as open_:
        await loads.echo(open_, 50)
        cpu = loads.BusierCpu(pid)
        found["echo_p50_us"], found["echo_p99_us"] = await loads.echo(open_, work.echoes)
        found["echo_cpu_us"] = cpu.busier() / (work.echoes + loads.WARM_UP) * 1e6
        found["bulk_MBps"] = await loads.bulk(open_, work.megabytes)
        found["bulk_cpu_ms_per_MB"] = cpu.busier() * 1000 / (work.megabytes * 1.048576)
        if work.at_once:
            found["at_once_per_s"] = await loads.at_once(open_, work.at_once)
        if work.each and side.name != "tls":  # a stream of TLS is a TCP connection
            found["stream_each_per_s"] = await loads.a_stream_each(open_, work.each)
    return found


def run(*, work: Work = Work(), engine: str = "auto", sides: tuple[Side, ...] = SIDES) -> dict[str, Any]:
    """Return the medians of every side, and the ratios of meshnode to aioquic.asyncio and to TLS.

    More is better of what ends in ``per_s`` and of ``bulk_MBps``, less of all others.
    """
    context = multiprocessing.get_context("spawn")
    servers = []
    for side in sides:
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(side.server, there, engine), daemon=True)
        process.start()
        servers.append((process, here, here.recv()))
    results: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
    try:
        for _ in range(work.rounds):
            for side, (process, _, where) in zip(sides, servers, strict=True):
                results[side.name].append(asyncio.run(_measure(side, where, process.pid or 0, engine, work)))
    finally:
        for process, pipe, _ in servers:
            pipe.send(None)
            process.join(3)
            process.kill()
    return {name: _row(name, results) for name in results[sides[-1].name][0]}


def _row(name: str, results: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    more = name.endswith(("per_s", "MBps"))
    row, best = {}, {}
    for side, rounds in results.items():
        values = [found[name] for found in rounds if name in found]
        if values:
            row[side] = round(statistics.median(values), 2)
            best[side] = (max if more else min)(values)
    if "aioquic" in row:
        row["ratio"] = round(row["meshnode"] / row["aioquic"], 2)
        row["ratio_of_best"] = round(best["meshnode"] / best["aioquic"], 2)  # what a busy machine disturbs least
    if "tls" in row:
        row["to_tls"] = round(row["meshnode"] / row["tls"], 2)
    return row


if __name__ == "__main__":
    engines = [word for word in sys.argv[1:] if not word.startswith("-")]
    print(json.dumps(run(work=SHORT if "--short" in sys.argv else Work(), engine=(engines or ["auto"])[0]), indent=1))
