"""Doors of a node that ids with the mesh key can knock at: what each flood sends, made in the flood's own process."""

from __future__ import annotations

import itertools
import os
import select
import socket
import time
from collections.abc import Callable
from types import TracebackType

from attacks.foe import CLOCK, Address, Flood, Foe, Make, Sockets, first_flight, unproven
from meshnode.base.address import Addr
from meshnode.discovery.dht.messages import Find, Nodes, Store, Watch, decode_message, encode_message
from meshnode.errors import MeshError
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import Endpoint, sign_record

TX = bytes(8)


def pings(to: NodeId, ids: int) -> Make:
    """Sealed PINGs."""

    def make(sockets: Sockets) -> Callable[[], bytes]:
        foes = itertools.cycle([Foe() for _ in range(ids)])
        return lambda: next(foes).ping(to)

    return make


def knocks(to: NodeId, ids: int) -> Make:
    """First flights with valid knocks, whose handshakes stay half open."""

    def make(sockets: Sockets) -> Callable[[], bytes]:
        flight = first_flight(to)
        foes = itertools.cycle([Foe() for _ in range(ids)])
        return lambda: next(foes).initial(to, flight)

    return make


def noise(to: NodeId, ids: int) -> Make:
    """Datagrams that open the receiver's box and prove nothing, in the names of valid ids."""

    def make(sockets: Sockets) -> Callable[[], bytes]:
        names = itertools.cycle([Identity.generate().id.raw for _ in range(ids)])
        return lambda: unproven(to, next(names))

    return make


def records(ids: int) -> list[bytes]:
    """Return signed records of throw-away ids."""
    now = int(CLOCK.wall() * 1000)
    endpoint = Endpoint(Addr("192.0.2.9", 9))
    return [
        sign_record(Identity.generate(), seq=now, issued_ms=now, ttl=3_600, endpoints=(endpoint,)).encoded
        for _ in range(ids)
    ]


def tokens(to: NodeId, sockets: Sockets) -> list[tuple[Foe, bytes]]:
    """Return an id for each socket, with the token that proves its address to the DHT's holder."""
    foes = [Foe() for _ in sockets]
    found = [b""] * len(sockets)
    for foe, sock in zip(foes, sockets, strict=True):
        sock.send(foe.sealer.seal(to, encode_message(Find(TX, os.urandom(20)), pad_to=600)))
        time.sleep(0.001)
    until = time.monotonic() + 2.0
    index = {sock: n for n, sock in enumerate(sockets)}
    while not all(found) and time.monotonic() < until:
        for sock in select.select(sockets, [], [], 0.1)[0]:
            number = index[sock]
            found[number] = found[number] or _token(foes[number], sock)
    return list(zip(foes, found, strict=True))


def _token(foe: Foe, sock: socket.socket) -> bytes:
    try:
        opened = foe.sealer.unseal(sock.recv(2_048))
        reply = decode_message(opened[1]) if opened is not None else None
    except (OSError, MeshError, ValueError):
        return b""
    return reply.token if isinstance(reply, Nodes) else b""


def stores(to: NodeId, ids: int) -> Make:
    """STOREs of records of throw-away ids, with valid tokens."""

    def make(sockets: Sockets) -> Callable[[], bytes]:
        signed = itertools.cycle(records(ids))
        proven = itertools.cycle(tokens(to, sockets))

        def one() -> bytes:
            foe, token = next(proven)
            return foe.sealer.seal(to, encode_message(Store(TX, token, next(signed))))

        return one

    return make


def watches(to: NodeId, ids: int) -> Make:
    """WATCHes of random keys, with valid tokens."""

    def make(sockets: Sockets) -> Callable[[], bytes]:
        proven = itertools.cycle(tokens(to, sockets))

        def one() -> bytes:
            foe, token = next(proven)
            return foe.sealer.seal(to, encode_message(Watch(TX, token, os.urandom(20), 0, 90)))

        return one

    return make


class Tunnels:
    """TLS connections with valid knocks, each of another id, as fast as one process opens them; none is used."""

    def __init__(self, to: NodeId, address: Address, control: bool) -> None:
        self._flood = Flood(_tunnels(to, address, control), address, 10_000.0)

    @property
    def rate(self) -> float:
        """Connections a second."""
        return self._flood.rate

    def __enter__(self) -> Tunnels:
        self._flood.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flood.__exit__(kind, error, trace)


def _tunnels(to: NodeId, address: Address, control: bool) -> Make:
    def make(sockets: Sockets) -> Callable[[], bytes]:
        held: list[socket.socket] = []

        def one() -> bytes:
            try:
                if control:  # what TLS costs the attacker
                    until = time.process_time() + 0.001
                    while time.process_time() < until:
                        Foe()
                    time.sleep(0.003)
                else:
                    held.append(Foe().tunnel(to, address))
            except OSError:
                pass
            if len(held) > 500:
                held.pop(0).close()
            return b"\x1f"

        return one

    return make
