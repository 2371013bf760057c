"""Members that spoof their source or lie in a record: the bytes that this brings a host that never spoke.

All of 127.0.0.0/8 is on this host, so a socket of a victim's address sends what a spoofer would, and counts what comes
back. A victim is no member, and answers nothing; each has an address of its own, for what one earned is a host's.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import select
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from types import TracebackType

from attacks import Row
from attacks.foe import Foe
from attacks.lab import Member, Stream, mesh
from meshnode.base.address import Addr
from meshnode.config import Config
from meshnode.discovery.dht import messages as dht
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import Endpoint, sign_record
from meshnode.paths.effects import MOVED
from meshnode.quic.connection import Connection
from meshnode.quic.engines import pick_engine
from meshnode.quic.hello import LocalEnd
from meshnode.sdk.node import Node, runtime_of
from meshnode.stack import probe

CREDIT = "stack/address_credit.py"
ROWS = {
    "moved": Row(
        7, "high", "member: sealed MOVED from ever new ports of a victim", CREDIT,
        "bytes to the victim for each from it", 96, 3,
    ),
    "half_open": Row(
        8, "high", "host that reads a connection id: junk during a handshake", "stack/connections.py",
        "bytes to the victim for each from it", 238, 3,
    ),
    "records": Row(
        9, "high", "member: 200 records/s over its link name 16 ports each", CREDIT,
        "bytes to the victim for each sent", 6.7, 1,
    ),
    "goodput": Row(
        9, "high", "member: records as fast as its link takes them", "stack/record_pace.py",
        "a member's goodput, of the control's", 0.13, 0.5, more=True,
    ),
    "dht": Row(
        13, "medium", "member without a connection: DHT requests and PINGs from a victim", CREDIT,
        "bytes to the victim for each from it, worst kind", 2.9, 1,
    ),
}  # fmt: skip
HOSTS = itertools.count(1)
PORTS = 16
AGAIN_S = 0.31  # longer than the MOVED probes of one burst belong together
LISTEN_S = 2.5  # after the last datagram


class Victim:
    """Sockets of one address; ``sent`` and ``received`` are bytes of UDP payload."""

    def __init__(self, count: int = PORTS) -> None:
        self.host = f"127.9.9.{next(HOSTS)}"
        self.sent = self.received = 0
        self._sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
        for sock in self._sockets:
            sock.bind((self.host, 0))
            sock.setblocking(False)

    def __enter__(self) -> Victim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sock in self._sockets:
            sock.close()

    @property
    def ports(self) -> list[int]:
        """Its ports."""
        return [sock.getsockname()[1] for sock in self._sockets]

    def send(self, data: bytes, to: tuple[str, int], number: int = 0) -> None:
        """Send as a spoofer would, from one of its ports."""
        self._sockets[number % len(self._sockets)].sendto(data, to)
        self.sent += len(data)

    def listen(self, seconds: float) -> None:
        """Count what comes, for so long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            for sock in select.select(self._sockets, [], [], left)[0]:
                with suppress(BlockingIOError, ConnectionRefusedError):
                    self.received += len(sock.recv(65_536))

    @property
    def factor(self) -> float:
        """Bytes that came for each that was sent."""
        return self.received / self.sent


def _config(home: str, seed: Member) -> Config:
    return Config(home=home, listen="127.0.0.1:0", seeds=(seed.at,), mdns=False, port_mapping=False)


async def _linked(seed: Member, attack: Callable[[Node, Connection], object]) -> None:
    """Run an attack of a member that has a connection with the seed."""
    with tempfile.TemporaryDirectory() as home:
        async with Node(_config(home, seed)) as node:
            await node.connect(seed.id)
            connection = runtime_of(node).stack.context.peers.connection(seed.id)
            assert connection is not None
            found = attack(node, connection)
            if asyncio.iscoroutine(found):
                await found


def moved(seed: Member, service: str, victim: Victim) -> None:
    """Download, and say all the time that the download has moved to another port of the victim."""

    async def attack(node: Node, connection: Connection) -> None:
        reader, _ = await node.open(seed.id, service)

        async def read() -> None:
            while await reader.read(65_536):
                pass

        reading = asyncio.create_task(read())
        sealer = runtime_of(node).stack.context.sealer
        for number in range(PORTS):
            ping = probe.Ping(MOVED, os.urandom(8), probe.connection_tag(connection))
            victim.send(sealer.seal(seed.id, probe.encode_ping(ping)), seed.address, number)
            await asyncio.get_running_loop().run_in_executor(None, victim.listen, AGAIN_S)
        reading.cancel()

    asyncio.run(_linked(seed, attack))


class _Quiet:
    """Takes all that a connection tells, and does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *what: None


def half_open(seed: Member, victim: Victim) -> None:
    """Dial, and send junk with the connection id from the victim before each later flight; answer no probe."""
    foe = Foe()
    engine = pick_engine("aioquic").dial(
        foe.identity, seed.id, lambda odcid: foe.sealer.knock(seed.id, odcid), 30.0, time.monotonic()
    )
    local = LocalEnd(foe.identity, os.urandom(8), b"")
    connection = Connection(engine, local, seed.id, _Quiet(), dialler=True, now=time.monotonic())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.bind(("127.0.0.1", 0))
        own.settimeout(0.05)
        until, junk = time.monotonic() + 3.0, 0
        while time.monotonic() < until:
            for flight, datagram in enumerate(connection.transmit(time.monotonic())):
                if (connection.bytes_in or flight) and junk < 5:
                    junk += 1
                    victim.send(b"\x41" + engine.odcid + os.urandom(12), seed.address)
                    time.sleep(0.002)
                own.sendto(datagram, seed.address)
            with suppress(TimeoutError, ConnectionRefusedError):
                connection.receive([own.recv(65_536)], time.monotonic())
            victim.listen(0.01)


def _record(identity: Identity, seq: int, host: str, ports: list[int]) -> bytes:
    endpoints = tuple(Endpoint(Addr(host, port)) for port in ports)
    now = int(time.time() * 1000)
    return sign_record(identity, seq=now + seq, issued_ms=now, ttl=3600, endpoints=endpoints).encoded


def records(seed: Member, victim: Victim) -> None:
    """Push 200 records in a second, each of which names all ports of the victim."""

    async def attack(node: Node, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        identity = runtime_of(node).stack.context.identity
        for number in range(200):
            encoded = _record(identity, number, victim.host, victim.ports)
            connection.push_record(encoded)
            victim.sent += len(encoded)
            await loop.run_in_executor(None, victim.listen, 0.005)

    asyncio.run(_linked(seed, attack))


def _request(kind: str, number: int, foe: Foe, seed: Member, victim: Victim) -> bytes:
    """Return the body of the request with that number: each is of another size where its kind has sizes."""
    tx, key, pad = os.urandom(dht.TX_LENGTH), os.urandom(dht.KEY_LENGTH), 30 * (number % 36)
    match kind:
        case "ping":
            return dht.encode_message(dht.Ping(tx), pad_to=32 + 5 * number)
        case "find":
            return dht.encode_message(dht.Find(tx, key), pad_to=pad)
        case "get":
            return dht.encode_message(dht.Get(tx, key), pad_to=pad)
        case "store":
            return dht.encode_message(dht.Store(tx, b"", _record(foe.identity, number, victim.host, [9])))
        case "watch":
            return dht.encode_message(dht.Watch(tx, b"", seed.id.dht_key, 0, 90))
        case _:
            return probe.encode_ping(probe.Ping(number % 8, tx, bytes(probe.HANDLE_LENGTH)))


def requests(seed: Member, kind: str, victim: Victim) -> None:
    """Send 40 requests of one kind from a victim, each of a new identity."""
    for number in range(40):
        foe = Foe()
        victim.send(foe.sealer.seal(seed.id, _request(kind, number, foe, seed, victim)), seed.address, number)
        victim.listen(0.015)


class _Flood:
    """A process that is a member and pushes records as fast as its link takes them; else it only makes them."""

    def __init__(self, seed: Member, *, sends: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._began = context.Event()
        arguments = (seed.at, sends, self._began)
        self._process = context.Process(target=_flood, args=arguments, daemon=True)

    def __enter__(self) -> _Flood:
        self._process.start()
        if not self._began.wait(20.0):
            raise RuntimeError("the flood could not begin")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join()


def _flood(at: str, sends: bool, began: multiprocessing.synchronize.Event) -> None:
    async def attack() -> None:
        with tempfile.TemporaryDirectory() as home:
            async with Node(Config(home=home, listen="127.0.0.1:0", seeds=(at,), mdns=False)) as node:
                peer = NodeId.parse(at.partition("@")[0])
                await node.connect(peer)
                stack, number = runtime_of(node).stack, 0
                began.set()
                while (connection := stack.context.peers.connection(peer)) is not None:
                    number += 1
                    ports = [20_000 + (number * PORTS + port) % 40_000 for port in range(PORTS)]
                    encoded = _record(stack.context.identity, number, "127.9.9.200", ports)
                    if sends:
                        connection.push_record(encoded)
                    await asyncio.sleep(0.001)
                    while connection.streams.queued(0) > 100_000:  # noqa: ASYNC110
                        await asyncio.sleep(0.002)

    asyncio.run(attack())


def _goodput(seed: Member, member: Member, *, sends: bool) -> float:
    with _Flood(seed, sends=sends), Stream(seed, member) as stream:
        stream.goodput(1.5)
        return stream.goodput(5.0)


KINDS = ("ping", "find", "get", "store", "watch", "probe")


def _factors(seed: Member) -> dict[str, float]:
    """Attack for a victim each, those that take long at once, and listen for all of them together."""
    with ExitStack() as held, ThreadPoolExecutor() as threads:
        victims = {name: held.enter_context(Victim()) for name in ("moved", "half_open", "records", *KINDS)}
        running = [
            threads.submit(moved, seed, "src65536", victims["moved"]),
            threads.submit(half_open, seed, victims["half_open"]),
            threads.submit(records, seed, victims["records"]),
        ]
        for attack in running:
            attack.result()
        for kind in KINDS:
            requests(seed, kind, victims[kind])
        until = time.monotonic() + LISTEN_S
        while time.monotonic() < until:
            for victim in victims.values():
                victim.listen(0.01)
        factors = {name: victim.factor for name, victim in victims.items()}
    return {name: factors[name] for name in ("moved", "half_open", "records")} | {
        "dht": max(factors[kind] for kind in KINDS)
    }


def run(short: bool) -> dict[str, float]:
    """Attack a seed as members with and without a connection."""
    with mesh(1) as (_, seed, (member,)):
        with Stream(seed, member):
            figures = _factors(seed)
        if not short:
            pairs = [(_goodput(seed, member, sends=True), _goodput(seed, member, sends=False)) for _ in range(3)]
            figures["goodput"] = statistics.median(attacked / control for attacked, control in pairs)
    return figures
