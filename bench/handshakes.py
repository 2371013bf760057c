"""What one connection costs: datagrams and round trips of a dial in virtual time, calls and CPU of both ends, memory.

The first two are exact. A listener's budgets for first flights are lifted for the last: one node that dials again and
again is what they are there to slow down.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import meshnode
from meshnode.identity.keys import Identity
from meshnode.quic.connection import Connection
from meshnode.quic.engines import pick_engine
from meshnode.sdk.node import runtime_of
from meshnode.sim.world import SimNode, Weather, World

DELAY_S = 0.02
QUIET = {"listen": "127.0.0.1:0", "mdns": False, "port_mapping": False, "dht": False, "gossip": False, "relay": "off"}
BURST = 16
PAGE = 4096


def datagrams(engine: str, *, service: bool = False, post_quantum: str = "on") -> dict[str, float]:
    """Dial a known peer in virtual time, 40 ms away; datagrams until 2 s later, and round trips until it is ready.

    With ``service`` a stream is opened at once, and what counts is the first byte of its echo.
    """
    world = World(1, Weather(delay=DELAY_S))
    engines = pick_engine(engine, post_quantum)
    friend = SimNode(world, "10.0.0.9", engines, seed_role=True)
    nodes = [SimNode(world, f"10.0.0.{n}", engines) for n in (1, 2)]
    for node in nodes:
        node.join(friend)
    world.run(5.0)
    dialler, listener = nodes
    dialler.mesh.offer_record(listener.mesh.record.encoded, "ticket", world.now)  # type: ignore[union-attr]
    passed: list[tuple[float, bool, int, bool]] = []  # when, from the dialler, size, of QUIC
    deliver = world.deliver

    def note(source: Any, to: Any, datagram: bytes, nat: Any = None) -> None:
        ends = {source.host, to.host}
        if ends == {dialler.addr.host, listener.addr.host}:
            passed.append(
                (round(world.now - began, 4), source.host == dialler.addr.host, len(datagram), datagram[0] & 0x40 > 0)
            )
        deliver(source, to, datagram, nat)

    world.deliver = note  # type: ignore[method-assign]
    began = world.now
    found: list[float] = []

    def ready(outcome: Any) -> None:
        assert isinstance(outcome, Connection), outcome
        found.append(world.now - began)
        if service:
            stream, inbox = dialler.open(outcome)
            stream.write(b"x")
            inboxes.append(inbox)

    inboxes: list[Any] = []
    dialler.mesh.connect(listener.id, world.now, ready)
    dialler.on_dirty()
    world.run(5.0, lambda: bool(found))
    if service:
        world.run(5.0, lambda: bool(inboxes[0].data))
        found[0] = world.now - began
    world.run(2.0)
    return {
        "datagrams": sum(quic for *_, quic in passed),
        "flushes": len({(at, end) for at, end, _, quic in passed if quic}),
        "sealed": sum(not quic for *_, quic in passed),
        "bytes": sum(size for _, _, size, _ in passed),
        "round_trips": round(found[0] / (2 * DELAY_S), 1),
        "passed": passed,  # type: ignore[dict-item]
    }


def lift(node: meshnode.Node) -> None:
    """Take away a listener's budgets for first flights."""
    half_open: Any = runtime_of(node).stack.context.peers.half_open
    half_open.take = lambda *_: True
    half_open.has_token = lambda *_: True


async def _dials(engine: str, count: int) -> dict[str, float]:
    settings: dict[str, Any] = {"engine": engine, **QUIET}
    with tempfile.TemporaryDirectory() as folder:
        homes = [Path(folder) / str(n) for n in range(BURST + 1)]
        async with AsyncExitStack() as stack:
            listener = await stack.enter_async_context(meshnode.Node(meshnode.Config(home=homes[0], **settings)))
            lift(listener)
            assert listener.record is not None
            settings["seeds"] = (f"{listener.id}@{listener.record.endpoints[0]}",)
            diallers = []
            for home in homes[1:]:
                diallers.append(await stack.enter_async_context(meshnode.Node(meshnode.Config(home=home, **settings))))
            await asyncio.sleep(0.5)
            dialler, times = diallers[0], list[float]()
            calls = await _calls(dialler, listener)
            began, cpu = time.perf_counter(), time.process_time()
            for _ in range(count):
                at = time.perf_counter()
                connection = await dialler.connect(listener.id)
                times.append(time.perf_counter() - at)
                connection.close()
                await asyncio.sleep(0)
            spent, passed = time.process_time() - cpu, time.perf_counter() - began
            began, rounds = time.perf_counter(), max(1, count // BURST)
            for _ in range(rounds):
                for connection in await asyncio.gather(*(node.connect(listener.id) for node in diallers)):
                    connection.close()
                await asyncio.sleep(0)
            at_once = rounds * BURST / (time.perf_counter() - began)
    return {
        "calls": calls,
        "cpu_ms": round(spent / count * 1000, 2),
        "p50_ms": round(statistics.median(times) * 1000, 2),
        "per_s": round(count / passed),
        "per_s_at_once": round(at_once),
    }


async def _calls(dialler: meshnode.Node, listener: meshnode.Node) -> int:
    """Return how many Python functions a dial runs at both ends, ours and the engine's: the median of several."""
    counts = []
    for _ in range(7):
        await asyncio.sleep(0.2)
        count = 0

        def note(frame: FrameType, event: str, _: Any) -> None:
            nonlocal count
            count += event == "call"

        sys.setprofile(note)
        connection = await dialler.connect(listener.id)
        sys.setprofile(None)
        connection.close()
        counts.append(count)
    return round(statistics.median(counts))


def memory(engine: str, count: int = 150) -> float:
    """Return the kB of one end of a connection, from the growth of this process: to be asked first, and once."""
    engines = pick_engine(engine)
    one, other = Identity(bytes(31) + b"\1"), Identity(bytes(31) + b"\2")
    held = []
    for number in range(2 * count):
        if number == count:
            gc.collect()
            before = _resident()
        dialler = engines.dial(one, other.id, lambda odcid: bytes(96), 60.0, 0.0)
        listener = engines.accept(other, dialler.odcid, 60.0, 0.0)
        for step in range(10):
            for source, target in ((dialler, listener), (listener, dialler)):
                if datagrams := source.transmit(step * 0.001):
                    target.receive(datagrams, step * 0.001)
                source.events()
        held += [dialler, listener]
    gc.collect()
    return round((_resident() - before) / count / 2 / 1000, 1)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def run(engine: str = "auto", count: int = 200) -> dict[str, Any]:
    """Return the figures of an engine."""
    kilobytes = memory(engine)
    first = datagrams(engine)
    echo = datagrams(engine, service=True)
    more = asyncio.run(_dials(engine, count))
    return {**first, "echo_round_trips": echo["round_trips"], **more, "connection_kB": kilobytes}


if __name__ == "__main__":
    for name in sys.argv[1:] or ("qh3", "aioquic"):
        figures = run(name)
        for at, out, size, quic in figures.pop("passed"):
            print(f"  {at * 1000:7.1f} ms {'->' if out else '<-'} {size} {'' if quic else 'sealed'}")
        print(name, figures)
