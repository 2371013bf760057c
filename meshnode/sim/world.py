"""A virtual clock, a virtual network and nodes on it. One seed, one run.

Links have delay, jitter (hence reordering), loss, duplicates and partitions. With the modelled link every byte
repeats for a seed. With real QUIC the schedule does (time, source, destination, size of every datagram) but not
the bytes, for TLS draws its own keys. A node may sit behind NATs (nat.py); addresses then mean something only
inside their site.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from meshnode.base.address import Addr
from meshnode.base.limits import MAX_RECORD_FUTURE_S
from meshnode.base.path import Hop, Path, ViaSocket, ViaTunnel
from meshnode.errors import MeshError
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import LEAF, Endpoint
from meshnode.identity.sealing import MeshKey, Sealer
from meshnode.quic.connection import Connection, State
from meshnode.quic.seam import EngineFactory
from meshnode.quic.stream import Stream
from meshnode.sim.link import ModelEngines
from meshnode.sim.nat import Behaviour, Nat, Receiver, Sites
from meshnode.stack.context import StackSettings
from meshnode.stack.stack import Stack
from meshnode.trust.chain import Chain
from meshnode.trust.decision import Decision
from meshnode.trust.guard import Guard
from meshnode.trust.policy import Act
from meshnode.trust.revocation import Revocation

EPOCH = 1_700_000_000.0
FIRST_SIDE_PORT = 10_000


@dataclass(frozen=True, slots=True)
class Weather:
    """State of the network: one-way ``delay`` and ``jitter`` in seconds, ``loss`` and ``duplicate`` from 0 to 1.

    Jitter alone reorders: two datagrams sent together arrive in any order.
    """

    delay: float = 0.05
    jitter: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0


class World:
    """Virtual network with a virtual time; also the Clock of every node in it."""

    def __init__(self, seed: int, weather: Weather = Weather()) -> None:
        self.now = 0.0
        self.rng = random.Random(seed)
        self.weather = weather
        self.nodes: dict[Addr, Receiver] = {}  # those on the open Internet; all of them in ``sites``
        self.sites = Sites(self.nodes)
        self.sent = 0
        self.bytes_repeat = True  # until a node with real QUIC comes
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._cut: dict[tuple[str, str], None] = {}
        self._delays: dict[tuple[str, str], float] = {}
        self._mtus: dict[tuple[str, str], int] = {}
        self._trace = hashlib.blake2b(digest_size=16)

    def monotonic(self) -> float:
        """Return the virtual time in seconds, 0 at the start."""
        return self.now

    def wall(self) -> float:
        """Return the virtual time in Unix seconds; every run begins in November 2023."""
        return EPOCH + self.now

    def entropy(self, count: int) -> bytes:
        """Return ``count`` bytes that follow from the seed and all that was drawn before."""
        return self.rng.randbytes(count)

    @property
    def digest(self) -> str:
        """Names the run so far: times, addresses and sizes of all datagrams, and contents when ``bytes_repeat``."""
        return self._trace.copy().hexdigest()

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Call ``action`` at a virtual time; one that has passed counts as now.

        Actions of the same time run in the order in which they were given.
        """
        self._count += 1
        heapq.heappush(self._queue, (max(when, self.now), self._count, action))

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let ``seconds`` of virtual time pass, with all that is due meanwhile.

        Returns True, at that time, when ``until`` holds after some action; it is asked after each. False when the time
        is over, and always without ``until``.
        """
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            when, _, action = heapq.heappop(self._queue)
            self.now = when
            action()
            if until is not None and until():
                return True
        self.now = end
        return until is not None and until()

    def partition(self, one: str, other: str, *, cut: bool, back: bool = True) -> None:
        """Cut, or mend, the ways between two hosts.

        Hosts are address texts as the network outside of NATs sees them. With ``back=False`` only what goes from
        ``one`` to ``other`` is cut. What is on its way arrives.
        """
        for pair in ((one, other), (other, one)) if back else ((one, other),):
            if cut:
                self._cut[pair] = None
            else:
                self._cut.pop(pair, None)

    def nat(self, behaviour: Behaviour, *outside: str, inside: str = "10.0.0.0/24", behind: Nat | None = None) -> Nat:
        """Make a NAT whose random ports follow from the world's seed.

        Its arguments are those of ``Nat``; nodes come into its network with ``SimNode(nat=...)`` or ``move``.
        """
        return Nat(behaviour, outside, rng=random.Random(self.rng.random()), inside=inside, behind=behind)

    def distance(self, one: str, other: str, delay: float) -> None:
        """Set the one-way delay in seconds between two hosts, both ways, instead of the weather's.

        Hosts are address texts as the network outside of NATs sees them; jitter and loss stay the weather's.
        """
        self._delays[(one, other)] = self._delays[(other, one)] = delay

    def narrow(self, one: str, other: str, size: int, *, back: bool = True) -> None:
        """Lose datagrams of more than ``size`` bytes between two hosts, and say nothing of it.

        Hosts are as in ``partition``; with ``back=False`` it is so only from ``one`` to ``other``.
        """
        for pair in ((one, other), (other, one)) if back else ((one, other),):
            self._mtus[pair] = size

    def deliver(self, source: Addr, to: Addr, datagram: bytes, nat: Nat | None = None) -> None:
        """Carry one datagram, or lose it, or carry it twice, as the weather has it.

        ``nat`` is the one that the sender sits behind; ``source`` and ``to`` are addresses as the sender knows them.
        The digest takes it in before anything can drop it.
        """
        self.sent += 1
        weather, rng = self.weather, self.rng
        self._trace.update(f"{self.now:.9f} {source.host} {source.port} {to.host} {to.port} {len(datagram)}\n".encode())
        if self.bytes_repeat:
            self._trace.update(datagram)
        outside = self.sites.climb(nat, source, to, self.now)
        if outside is None:
            return
        # partitions are between addresses as the network sees them: those outside of NATs
        site, source, to = outside
        if (self._cut and (source.host, to.host) in self._cut) or (weather.loss and rng.random() < weather.loss):
            return
        if self._mtus and len(datagram) > self._mtus.get((source.host, to.host), len(datagram)):
            return
        delay = self._delays.get((source.host, to.host), weather.delay) if self._delays else weather.delay

        def arrive() -> None:
            node = self.sites.descend(site, source, to, self.now)
            if node is not None:
                node.receive(datagram, source)

        self.at(self.now + delay + rng.random() * weather.jitter, arrive)
        if weather.duplicate and rng.random() < weather.duplicate:
            self.at(self.now + delay + rng.random() * weather.jitter, arrive)


@dataclass
class Inbox:
    """Bytes that one stream received, with the virtual time of each piece."""

    data: bytearray = field(default_factory=bytearray)
    times: list[float] = field(default_factory=list)


def echo_stream(stream: Stream) -> None:
    def changed() -> None:
        data = stream.read()
        if data and stream.error is None:
            stream.write(data)

    stream.on_change = changed
    changed()


class SimSide:
    """An extra socket of a node."""

    def __init__(self, node: SimNode, number: int) -> None:
        self._node = node
        self.number = number
        self.port = FIRST_SIDE_PORT + number

    def receive(self, datagram: bytes, source: Addr) -> None:
        """Pass a datagram to the node, with this socket as its way."""
        self._node.receive(datagram, ViaSocket(source, self.number))


class SimClock:
    """The clocks of one node: its wall clock is ``error`` seconds ahead of the world's."""

    def __init__(self, world: World, error: float) -> None:
        self.error = error
        self.monotonic = world.monotonic
        self._world = world

    def wall(self) -> float:
        """Return Unix seconds."""
        return self._world.wall() + self.error


class IgnoredEvents:
    """Events of a stack (``StackEvents``) that need no program here; a test that wants one sets it on its node."""

    def on_key_used_twice(self, node: NodeId) -> None:
        """Nothing to do: ``KeyTwins`` knows."""

    def on_stood_down(self, down: bool) -> None:
        """Nothing to do: ``Fencing.stood_down`` tells."""

    def on_revoked(self, revocation: Revocation) -> None:
        """Nothing to do: ``Revocations`` knows."""

    def on_clock_set(self, step: float) -> None:
        """Nothing to do: a name's claim is not on disk here."""

    def on_refused(self, peer: NodeId, act: Act, what: str, decision: Decision) -> None:
        """Nothing to do: the counter tells."""

    def on_cut(self, peer: NodeId, act: Act, what: str, decision: Decision) -> None:
        """Nothing to do: the counter tells."""

    def on_connection(self, connection: Connection, up: bool) -> None:
        """Nothing to do: ``mesh.sessions`` tells."""

    def on_path(self, peer: NodeId, old: Path | None, new: Path | None, why: str) -> None:
        """Nothing to do: the session's paths tell."""

    def on_contacts(self) -> None:
        """Nothing to do: contacts are not on disk here."""


class SimNode(IgnoredEvents):
    """One node: a protocol stack, an address, and a timer in the world's queue."""

    def __init__(
        self,
        world: World,
        host: str,
        engines: EngineFactory,
        *,
        seed_role: bool = False,
        leaf: bool = False,
        nat: Nat | None = None,
        sealer: type[Sealer] = Sealer,
        gossip: bool = False,
        identity: Identity | None = None,
        clock_error: float = 0.0,
        authority: NodeId | None = None,
        grants: Chain = (),
        was_away: bool = False,
        first_stays: bool = False,
    ) -> None:
        self.world = world
        self.clock = SimClock(world, clock_error)
        world.bytes_repeat = world.bytes_repeat and isinstance(engines, ModelEngines)
        self.addr = Addr(host, 4242)
        self.nat = nat
        self.alive = True
        self.on_stream_opened: Callable[[Stream], None] = echo_stream
        identity = identity or Identity(world.entropy(32))
        self.guard = Guard(identity.id)
        seal = sealer(identity, MeshKey.from_text("sim"), self.clock, world.entropy, born=self.clock.wall() - 1)
        self._seq = 0
        self._sides: dict[int, SimSide] = {}
        self._side_count = 0
        self._timer_at: float | None = None
        self._flushing = False
        self._unread: list[tuple[bytes, Path]] | None = None
        self.mesh = Stack(
            identity,
            seal,
            self,
            self,
            engines,
            clock=self.clock,
            rng=random.Random(world.rng.random()),
            entropy=world.entropy,
            next_seq=self._next_seq,
            guard=self.guard,
            grants=grants,
            settings=StackSettings(
                authority=authority,
                seed_role=seed_role,
                leaf=leaf,
                relay=seed_role,
                capabilities=("seed", "relay") if seed_role else (LEAF,) if leaf else (),
                gossip=gossip,
                was_away=was_away,
                first_stays=first_stays,
            ),
        )
        world.sites.enter(nat, self.addr, self)
        self._announce(moved=False)

    @property
    def id(self) -> NodeId:
        """The node's id."""
        return self.mesh.id

    def _next_seq(self) -> int:
        wall = int(self.clock.wall() * 1000)
        if self._seq > wall + MAX_RECORD_FUTURE_S * 1000:
            self._seq = 0
        self._seq = max(self._seq + 1, wall)
        return self._seq

    def _announce(self, *, moved: bool) -> None:
        # behind a NAT the neighbours are those of its network, as an interface's prefix tells a real node
        prefix = 32 if self.nat is None else self.nat.inside.prefixlen
        self.mesh.set_addresses((Endpoint(self.addr),), ((self.addr.host, prefix),), self.world.now, moved=moved)
        self._arm()

    def move(self, host: str, nat: Nat | None = None) -> None:
        """Change the address, as when a host changes networks; the old one is gone at once.

        ``nat`` is the NAT that it is behind from now on; None puts it on the open Internet.
        """
        self._leave()
        self.addr, self.nat = Addr(host, self.addr.port), nat
        self.world.sites.enter(nat, self.addr, self)
        for side in self._sides.values():
            self.world.sites.enter(nat, Addr(host, side.port), side)
        self._announce(moved=True)

    def kill(self) -> None:
        """Vanish: nothing is sent any more, and what is under way to it is lost.

        The address is free again, for a node that is made with the same identity, say.
        """
        self.alive = False
        self._leave()

    def _leave(self) -> None:
        for port in (self.addr.port, *(side.port for side in self._sides.values())):
            self.world.sites.leave(self.nat, Addr(self.addr.host, port))

    def join(self, seed: SimNode) -> None:
        """Add ``seed`` as a configured seed: its id and its present address."""
        self.mesh.add_seed(seed.id, [seed.addr], self.world.now)
        self._arm()

    @property
    def stalled(self) -> bool:
        """True while the process gets no CPU: what plays its application should wait too."""
        return self._unread is not None

    def stall(self, seconds: float) -> None:
        """Give the process no CPU for ``seconds``: what arrives waits to be read, timers are late.

        Which of the two comes first afterwards varies with the seed. Does nothing while it is stalled already.
        """
        if self._unread is None:
            self._unread = []
            self.world.at(self.world.now + seconds, self._go_on)

    def _go_on(self) -> None:
        unread, self._unread = self._unread or [], None
        steps = [lambda: self.mesh.receive(unread, self.world.now), self._tick]
        self.world.rng.shuffle(steps)
        if self.alive:
            for step in steps:
                step()
            self._arm()

    def receive(self, datagram: bytes, source: Path) -> None:
        """Take a datagram; it waits while the process is stalled."""
        if self._unread is not None:
            self._unread.append((datagram, source))
            return
        self.mesh.receive([(datagram, source)], self.world.now)
        self._arm()

    def send(self, path: Hop, datagrams: list[bytes]) -> bool:
        """Send datagrams as the stack's Transport.

        By an extra socket when the path names one. Returns False when that is closed, and for tunnels, which the
        simulator has not; a killed node sends nothing.
        """
        source = self.addr
        match path:
            case Addr():
                to = path
            case ViaSocket(to, number):
                side = self._sides.get(number)
                if side is None:
                    return False
                source = Addr(source.host, side.port)
            case ViaTunnel():
                return False
            case _:
                assert_never(path)
        if self.alive:
            for datagram in datagrams:
                self.world.deliver(source, to, datagram, self.nat)
        return True

    def open_sides(self, count: int, host: str = "") -> list[int]:
        """Open ``count`` extra sockets as the stack's Transport; a node has one address here, whatever ``host``.

        Returns their numbers, which are never used again.
        """
        fresh = range(self._side_count, self._side_count + count)
        self._side_count += count
        for number in fresh:
            side = self._sides[number] = SimSide(self, number)
            self.world.sites.enter(self.nat, Addr(self.addr.host, side.port), side)
        return list(fresh)

    def close_side(self, side: int) -> None:
        """Close an extra socket as the stack's Transport; does nothing when it is closed."""
        closed = self._sides.pop(side, None)
        if closed is not None:
            self.world.sites.leave(self.nat, Addr(self.addr.host, closed.port))

    def _arm(self) -> None:
        at = self.mesh.next_deadline()
        if at is not None and (self._timer_at is None or at < self._timer_at):
            self._timer_at = at
            self.world.at(at, self._tick)

    def _tick(self) -> None:
        if not self.alive or self.stalled or self._timer_at is None or self.world.now < self._timer_at:
            return
        self._timer_at = None
        self.mesh.tick(self.world.now)
        self._arm()

    def on_dirty(self) -> None:
        """Flush at this very time, after the caller is done.

        It is an action of its own in the world's queue, like a callback of its own in an event loop, and there is
        one however often this is called meanwhile.
        """
        if not self._flushing:
            self._flushing = True
            self.world.at(self.world.now, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self.alive and not self.stalled:
            self.mesh.flush(self.world.now)
            self._arm()

    def connect(self, peer: NodeId, seconds: float = 10.0) -> Connection:
        """Run the world until there is a connection, at most ``seconds`` of virtual time.

        Raises the MeshError that came instead, and one when nothing came.
        """
        found: list[Connection | MeshError] = []
        self.mesh.connect(peer, self.world.now, found.append)
        self.on_dirty()
        self.world.run(seconds, lambda: bool(found))
        result = found[0] if found else MeshError("no answer in virtual time")
        if isinstance(result, MeshError):
            raise result
        assert result.state is State.READY
        return result

    def open(self, connection: Connection, service: str = "echo") -> tuple[Stream, Inbox]:
        """Open a stream and collect what comes back; the Inbox fills while the world runs."""
        stream = connection.open(service)
        inbox = Inbox()

        def changed() -> None:
            data = stream.read()
            if data:
                inbox.data += data
                inbox.times.append(self.world.now)

        stream.on_change = changed
        return stream, inbox

    def on_stream(self, connection: Connection, stream: Stream) -> None:
        """Accept a stream of a peer, and hand it to ``on_stream_opened``, by default an echo."""
        stream.accept()
        self.on_stream_opened(stream)
