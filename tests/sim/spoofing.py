"""Members that spoof their source, in virtual time, and a victim whose bytes are counted.

The target has data to send and is a relay. Members are against it: one that is connected and downloads, some that dial,
and one without any connection. ``Spoofer`` delivers what they send as from the victim, which is no node.
"""

from __future__ import annotations

from collections.abc import Callable

from meshnode.base.address import Addr
from meshnode.base.limits import BASE_MTU
from meshnode.discovery.dht import messages as dht
from meshnode.identity.record import Endpoint, sign_record
from meshnode.identity.sealing import SEAL_OVERHEAD
from meshnode.paths.effects import MOVED
from meshnode.relay.frames import UP, label, make_frame
from meshnode.sim.link import ModelEngines
from meshnode.sim.plain import PlainSealer
from meshnode.sim.world import SimNode, Weather, World
from meshnode.stack import probe

VICTIM = "203.0.113.77"
BULK = 5_000_000  # bytes that the target has for each stream

Body = Callable[[int], bytes]  # of a size; kinds that have no padding ignore it


class Spoofer:
    """The target and its attackers.

    ``to_victim`` is bytes of UDP payload that the target sent to the victim; ``linked`` and ``unlinked`` what came
    "from" it, of the connections of ``member`` and ``diallers``, and all else.
    """

    def __init__(self, seed: int) -> None:
        self.world = World(seed, Weather(delay=0.02))
        self._engines = ModelEngines(self.world.entropy)
        self.target, self.member, self.stranger, self.friend = (self._node(n) for n in range(1, 5))
        self.diallers: list[SimNode] = []
        self.to_victim = self.linked = self.unlinked = 0
        self.quic_from: dict[Addr, Addr] = {}  # a sender -> where its QUIC datagrams seem to come from
        self.target.on_stream_opened = lambda stream: stream.write(bytes(BULK))
        self._deliver = self.world.deliver
        self.world.deliver = self._watch  # type: ignore[method-assign]
        for node in (self.member, self.friend):
            node.join(self.target)
        self.world.run(2.0)
        self.link = self.member.connect(self.target.id)
        self.friend.connect(self.target.id)
        self.member.open(self.link)
        self.world.run(0.3)
        assert self.to_victim == 0

    def _node(self, n: int) -> SimNode:
        host = f"198.51.{n // 200}.{n % 200}"
        return SimNode(self.world, host, self._engines, seed_role=n == 1, sealer=PlainSealer)

    @property
    def allowed(self) -> int:
        """Bytes that the victim may have been sent: three for each of a connection, one for each other."""
        return 3 * self.linked + self.unlinked

    def _watch(self, source: Addr, to: Addr, datagram: bytes, nat: None = None) -> None:
        if to.host == VICTIM:
            self.to_victim += len(datagram)
        seeming = self.quic_from.get(source)
        if seeming is not None and to == self.target.addr and datagram[0] & 0x40:
            self.linked += len(datagram)
            source = seeming
        self._deliver(source, to, datagram)

    def send(self, datagram: bytes, port: int, *, linked: bool) -> None:
        """Deliver one datagram to the target as from a port of the victim; it arrives later."""
        if linked:
            self.linked += len(datagram)
        else:
            self.unlinked += len(datagram)
        self._deliver(Addr(VICTIM, port), self.target.addr, datagram)

    def sealed(self, body: bytes, port: int, *, linked: bool) -> None:
        """Send a sealed body of the member (``linked``) or of the stranger."""
        node = self.member if linked else self.stranger
        self.send(node.mesh.context.sealer.seal(self.target.id, body), port, linked=linked)

    def moved(self, port: int, size: int = 0) -> None:
        """Say as the member that it is at a port of the victim now."""
        ping = probe.Ping(MOVED, self.world.entropy(8), probe.connection_tag(self.link))
        self.sealed(probe.encode_ping(ping, max(probe.MIN_PING, size - SEAL_OVERHEAD)), port, linked=True)

    def bodies(self, key: bytes = b"", token: bytes = b"") -> dict[int, Body]:
        """Return a body of each kind of sealed message, by its number."""
        tx = self.world.entropy(8)
        key = key or self.world.entropy(20)
        record = self.record(self.stranger, Addr("192.0.2.9", 9))
        contacts = (dht.ContactInfo(self.friend.id, Addr("192.0.2.9", 9)),)
        tag = probe.connection_tag(self.link)

        def of(message: dht.Message) -> Body:
            return lambda size: dht.encode_message(message, pad_to=min(size, 1_100))

        return {
            probe.PING: lambda size: probe.encode_ping(probe.Ping(size % 8, tx, tag if size % 2 else bytes(8)), size),
            probe.PONG: lambda size: probe.encode_pong(probe.Pong(size % 2, tx, Addr("192.0.2.9", 1 + size))),
            0x10: of(dht.Ping(tx)),
            0x11: of(dht.Pong(tx, token)),
            0x12: of(dht.Find(tx, key)),
            0x13: of(dht.Nodes(tx, token, contacts)),
            0x14: of(dht.Get(tx, key)),
            0x15: of(dht.Value(tx, token, contacts, record)),
            0x16: of(dht.Store(tx, token, record)),
            0x17: of(dht.Stored(tx, dht.Status.NEED_TOKEN, token)),
            0x18: of(dht.Watch(tx, token, key, 0, 90)),
            0x19: of(dht.Watched(tx, dht.Status.OK, token, record)),
            0x1A: of(dht.Push(tx, record)),
            0x1B: of(dht.PushAck(tx)),
        }

    def record(self, owner: SimNode, *addrs: Addr) -> bytes:
        """Return a record of a node, newer than any before, that names these addresses."""
        seq = owner._next_seq()
        now = int(self.world.wall() * 1000)
        endpoints = tuple(map(Endpoint, addrs))
        return sign_record(owner.mesh.context.identity, seq=seq, issued_ms=now, ttl=3600, endpoints=endpoints).encoded

    def half_open(self, port: int, *, at_once: bool = False) -> bytes:
        """Let a new node dial the target and, once that has answered, go on as from the victim.

        With ``at_once`` its first flight seems to come from there too. Returns the connection id that a host on the
        path reads.
        """
        dialler = self._node(100 + len(self.diallers))
        self.diallers.append(dialler)
        if at_once:
            self.quic_from[dialler.addr] = Addr(VICTIM, port)
        dialler.mesh.resolution.hints[self.target.id] = (self.target.addr,)
        dialler.mesh.connect(self.target.id, self.world.now, lambda result: None)
        dialler.on_dirty()
        self.world.run(0.03)  # the first flight has arrived, its answer has not
        self.quic_from[dialler.addr] = Addr(VICTIM, port)
        dial = dialler.mesh.sessions[self.target.id].dial
        return dial.engine.odcid if dial is not None else bytes(8)

    def relayed(self, count: int) -> None:
        """Let the friend send frames through the target to the member, from its own address."""
        for holding in self.friend.mesh.relaying._holdings.values():
            inner = b"\x01" + bytes(BASE_MTU - 26)
            to = label(self.member.id)
            frames = [make_frame(holding.key, UP, holding.reservation, to, inner)] * count
            self.friend.send(self.target.addr, frames)
