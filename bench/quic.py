"""Bulk, echo and connect against ``aioquic.asyncio``, interleaved in one run, client and server in two processes."""

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
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

SERVICE = "bench"


# ---- the baseline: aioquic's own asyncio API, as its documentation shows it


def _certificate(folder: Path) -> tuple[Path, Path]:
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


async def _handle(reader: Any, writer: Any) -> None:
    """First byte B: swallow to the end and say so; otherwise echo."""
    first = await reader.readexactly(1)
    if first == b"B":
        total = 0
        while data := await reader.read(1 << 18):
            total += len(data)
        writer.write(total.to_bytes(8, "big"))
    else:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.write_eof()


async def _baseline_server(pipe: Pipe, engine: str) -> None:
    from aioquic.asyncio import serve
    from aioquic.quic.configuration import QuicConfiguration

    with tempfile.TemporaryDirectory() as folder:
        configuration = QuicConfiguration(is_client=False, alpn_protocols=["bench"])
        configuration.load_cert_chain(*_certificate(Path(folder)))
        tasks = []

        def handler(reader: Any, writer: Any) -> None:
            tasks.append(asyncio.ensure_future(_handle(reader, writer)))

        server = await serve("127.0.0.1", 0, configuration=configuration, stream_handler=handler)
        pipe.send(server._transport.get_extra_info("sockname")[1])
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)


async def _mesh_server(pipe: Pipe, engine: str) -> None:
    from meshnode import Config, Node

    with tempfile.TemporaryDirectory() as folder:
        async with Node(Config(home=folder, listen="127.0.0.1:0", mdns=False, engine=engine)) as node:

            async def handler(reader: Any, writer: Any, peer: Any) -> None:
                await _handle(reader, writer)

            node.serve(SERVICE, handler, allow=["any"])
            pipe.send(f"{node.id}@{node.record.endpoints[0]}")
            await asyncio.get_running_loop().run_in_executor(None, pipe.recv)


def _serve(server: Callable[[Pipe, str], Awaitable[None]], pipe: Pipe, engine: str) -> None:
    asyncio.run(server(pipe, engine))  # type: ignore[arg-type]


# ---- what is measured, on an open stream


async def _bulk(reader: Any, writer: Any, megabytes: int) -> float:
    chunk = bytes(1 << 18)
    started = time.perf_counter()
    writer.write(b"B")
    for _ in range(megabytes * 4):
        writer.write(chunk)
        await writer.drain()
    writer.write_eof()
    assert int.from_bytes(await reader.readexactly(8), "big") == megabytes << 20
    return megabytes * 1.048576 / (time.perf_counter() - started)


async def _echo(reader: Any, writer: Any, count: int) -> float:
    times = []
    writer.write(b"E")
    for number in range(count + 100):
        started = time.perf_counter()
        writer.write(bytes(64))
        await reader.readexactly(64)
        if number >= 100:
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


async def _baseline_client(port: int, megabytes: int, echoes: int, connects: int) -> dict[str, float]:
    import ssl

    from aioquic.asyncio import connect
    from aioquic.quic.configuration import QuicConfiguration

    def configuration() -> QuicConfiguration:
        return QuicConfiguration(is_client=True, alpn_protocols=["bench"], verify_mode=ssl.CERT_NONE)

    times = []
    for _ in range(connects):
        started = time.perf_counter()
        async with connect("127.0.0.1", port, configuration=configuration()):
            times.append(time.perf_counter() - started)
    async with connect("127.0.0.1", port, configuration=configuration()) as client:
        echo = await _echo(*await client.create_stream(), echoes)
        bulk = await _bulk(*await client.create_stream(), megabytes)
    return {"bulk_MBps": bulk, "echo_p50_us": echo, "connect_p50_ms": statistics.median(times) * 1000}


async def _mesh_client(seed: str, engine: str, megabytes: int, echoes: int, connects: int) -> dict[str, float]:
    from meshnode import Config, Node

    peer = seed.partition("@")[0]
    settings: dict[str, Any] = {"listen": "127.0.0.1:0", "mdns": False, "seeds": (seed,), "engine": engine}
    with tempfile.TemporaryDirectory() as folder:
        async with Node(Config(home=folder, gossip=False, **settings)) as node:  # its links would be there already
            await node.resolve(peer)
            times = []
            for _ in range(connects):
                started = time.perf_counter()
                connection = await node.connect(peer)
                times.append(time.perf_counter() - started)
                connection.close()
                await asyncio.sleep(0.02)
    with tempfile.TemporaryDirectory() as folder:
        async with Node(Config(home=folder, **settings)) as node:
            echo = await _echo(*await node.open(peer, SERVICE), echoes)
            bulk = await _bulk(*await node.open(peer, SERVICE), megabytes)
    return {"bulk_MBps": bulk, "echo_p50_us": echo, "connect_p50_ms": statistics.median(times) * 1000}


@dataclass(frozen=True, slots=True)
class Work:
    """How much is done in one measurement."""

    rounds: int = 5
    megabytes: int = 32
    echoes: int = 1000
    connects: int = 20


SHORT = Work(2, 24, 500, 10)


def run(*, work: Work = Work(), engine: str = "auto") -> dict[str, Any]:
    """Return medians and the ratios of meshnode to aioquic.asyncio (bulk: more is better; others: less)."""
    todo = (work.megabytes, work.echoes, work.connects)
    context = multiprocessing.get_context("spawn")
    servers = []
    wheres: list[Any] = []
    for server in (_baseline_server, _mesh_server):
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(server, there, engine), daemon=True)
        process.start()
        servers.append((process, here))
        wheres.append(here.recv())
    results: list[list[dict[str, float]]] = [[], []]
    try:
        for _ in range(work.rounds):
            results[0].append(asyncio.run(_baseline_client(wheres[0], *todo)))
            results[1].append(asyncio.run(_mesh_client(wheres[1], engine, *todo)))
    finally:
        for process, pipe in servers:
            pipe.send(None)
            process.join(3)
            process.kill()
    found: dict[str, Any] = {}
    for name in results[0][0]:
        base, mesh = (statistics.median(r[name] for r in side) for side in results)
        found[name] = {"aioquic": round(base, 2), "meshnode": round(mesh, 2), "ratio": round(mesh / base, 2)}
        best = max if name == "bulk_MBps" else min
        base, mesh = (best(r[name] for r in side) for side in results)
        found[name]["ratio_of_best"] = round(mesh / base, 2)  # what a busy machine disturbs least
    return found


if __name__ == "__main__":
    print(json.dumps(run(work=SHORT if "--short" in sys.argv else Work())))
