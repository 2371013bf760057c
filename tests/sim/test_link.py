"""The modelled link: it delivers what real QUIC would, under loss, duplicates, reordering and moves."""

from __future__ import annotations

import random
from functools import partial
from unittest.mock import ANY

import pytest

from meshnode.base.address import Addr
from meshnode.errors import PeerIdentityError, StreamLimitError
from meshnode.identity.keys import Identity
from meshnode.quic.connection import Connection
from meshnode.quic.engines import pick_engine
from meshnode.quic.seam import (
    IDLE,
    CidIssued,
    CidRetired,
    Engine,
    EngineEvent,
    EngineFactory,
    HandshakeDone,
    StopSending,
    StreamData,
    StreamReset,
    Terminated,
)
from meshnode.sim.link import ModelEngine, ModelEngines
from meshnode.sim.nat import Nat
from meshnode.sim.plain import PlainSealer
from meshnode.sim.world import SimNode, Weather, World
from meshnode.trust.parties import NONE

ROUGH = Weather(delay=0.02, jitter=0.02, loss=0.05, duplicate=0.05)


def _mesh(seed: int, weather: Weather, count: int = 3, kind: str = "model") -> tuple[World, list[SimNode]]:
    world = World(seed, weather)
    engines = ModelEngines(world.entropy) if kind == "model" else pick_engine(kind)
    nodes = [SimNode(world, f"10.0.0.{i + 1}", engines, seed_role=i == 0, sealer=PlainSealer) for i in range(count)]
    for node in nodes[1:]:
        node.join(nodes[0])
    world.run(3.0)
    return world, nodes


def test_a_lost_welcome_is_not_mistaken_for_a_restart_of_the_dialler() -> None:
    world, nodes = _mesh(1, Weather(delay=0.05))
    carry = world.deliver
    lost: list[bytes] = []

    def drop_the_first_welcome(source: Addr, to: Addr, datagram: bytes, nat: Nat | None) -> None:
        if source == nodes[2].addr and datagram[0] & 0xC0 == 0x40 and not lost:
            lost.append(datagram)
        else:
            carry(source, to, datagram, nat)

    world.deliver = drop_the_first_welcome  # type: ignore[method-assign]
    nodes[1].connect(nodes[2].id, 2.0)
    assert lost


def _dial(node: SimNode, other: SimNode, results: list[object]) -> None:
    node.mesh.connect(other.id, node.world.now, results.append)
    node.on_dirty()


def _note_down(downs: list[object], connection: Connection, up: bool) -> None:
    if not up:
        downs.append(connection.error)


@pytest.mark.parametrize("smaller_first", [True, False])
@pytest.mark.parametrize(("kind", "step"), [("model", 2), ("aioquic", 10)])
def test_dials_that_cross_at_any_moment_leave_both_with_the_same_connection(
    kind: str, step: int, smaller_first: bool
) -> None:
    for milliseconds in range(0, 60, step):
        world, nodes = _mesh(milliseconds, Weather(delay=0.01, jitter=0.04, loss=0.02), kind=kind)
        pair = sorted(nodes[1:], key=lambda node: node.id, reverse=not smaller_first)
        ready: list[object] = []
        downs: list[object] = []
        for node, other, after in ((pair[0], pair[1], 0.0), (pair[1], pair[0], milliseconds / 1000)):
            node.on_connection = partial(_note_down, downs)  # type: ignore[method-assign]
            world.at(world.now + after, partial(_dial, node, other, ready))
        world.run(3.0)
        assert not downs, f"{milliseconds} ms apart"
        assert len(ready) == 2
        here, there = (a.mesh.sessions[b.id].connection for a, b in (pair, pair[::-1]))
        assert here is not None
        assert there is not None
        assert here.engine.odcid == there.engine.odcid


def test_a_dial_that_crossed_a_refused_one_still_gets_through() -> None:
    for seed in range(40):
        world, nodes = _mesh(seed, Weather(delay=0.01, jitter=0.04))
        smaller, larger = sorted(nodes[1:], key=lambda node: node.id)
        larger.guard.lists.node = NONE  # it may dial, and is not dialled
        got: list[object] = []
        world.at(world.now + 0.002 * seed, partial(_dial, larger, smaller, got))
        smaller.mesh.connect(larger.id, world.now, lambda _: None)
        smaller.on_dirty()
        world.run(3.0)
        assert [type(one) for one in got] == [Connection], seed


@pytest.mark.parametrize("seed", range(3))
def test_a_megabyte_arrives_whole_and_in_order_through_rough_weather_and_a_move(seed: int) -> None:
    world, nodes = _mesh(seed, ROUGH)
    connection = nodes[1].connect(nodes[2].id)
    stream, inbox = nodes[1].open(connection)
    data = random.Random(seed).randbytes(1 << 20)
    stream.write(data)
    world.run(0.3)
    nodes[2].move("10.0.7.7")
    assert world.run(60.0, lambda: len(inbox.data) == len(data))
    assert bytes(inbox.data) == data


def test_a_slow_reader_holds_its_sender_back() -> None:
    world, nodes = _mesh(2, Weather(delay=0.01))
    taken = []
    nodes[2].on_stream_opened = taken.append
    connection = nodes[1].connect(nodes[2].id)
    stream, _ = nodes[1].open(connection)
    stream.write(bytes(6 << 20))
    world.run(5.0)
    held = taken[0].buffered
    assert held <= 2 << 20, "no more than the stream's window arrives unread"
    got = 0
    while got < 6 << 20:
        got += len(taken[0].read())
        nodes[2].on_dirty()
        world.run(0.2)
    assert world.now < 20.0, "and reading lets it go on at once"
    assert stream.queued == 0


def test_streams_are_limited_and_the_limit_comes_back_as_they_end() -> None:
    world, nodes = _mesh(3, Weather(delay=0.01, loss=0.02))
    connection = nodes[1].connect(nodes[2].id)
    opened = []
    with pytest.raises(StreamLimitError):
        for _ in range(1000):
            opened.append(nodes[1].open(connection)[0])
    assert len(opened) == 127  # and the control stream
    world.run(1.0)
    for stream in opened:
        stream.reset()
    world.run(2.0)
    stream, inbox = nodes[1].open(connection)
    stream.write(b"again")
    assert world.run(2.0, lambda: bytes(inbox.data) == b"again")


def test_a_peer_that_proves_another_key_is_refused() -> None:
    world, nodes = _mesh(4, Weather(delay=0.01))
    real = ModelEngines.accept

    class Liars(ModelEngines):
        def accept(self, identity, odcid, idle_timeout, now, size):  # type: ignore[no-untyped-def]
            return real(self, nodes[0].mesh.context.identity, odcid, idle_timeout, now, size)

    nodes[2].mesh.context.engines = Liars(world.entropy)
    with pytest.raises(PeerIdentityError):
        nodes[1].connect(nodes[2].id)


def test_junk_does_not_disturb_a_connection() -> None:
    world, nodes = _mesh(5, Weather(delay=0.01))
    connection = nodes[1].connect(nodes[2].id)
    stream, inbox = nodes[1].open(connection)
    engine = connection.engine
    assert isinstance(engine, ModelEngine)
    rng = random.Random(5)
    for size in range(1, 200):
        nodes[1].receive(b"\x40" + engine.host_cid[: rng.randint(0, 8)] + rng.randbytes(size), nodes[2].addr)
        nodes[1].receive(b"\xc0" + rng.randbytes(size), nodes[2].addr)
    stream.write(b"alive")
    assert world.run(5.0, lambda: bytes(inbox.data) == b"alive")


class Pair:
    """Two engines and a wire of 10 ms; what each tells, without connection ids (the model has but one a side)."""

    def __init__(self, engines: EngineFactory) -> None:
        listener = Identity(bytes([2]) * 32)
        self.now = 0.0
        self.told: tuple[list[EngineEvent], list[EngineEvent]] = ([], [])
        dialler = engines.dial(Identity(bytes([1]) * 32), listener.id, lambda odcid: bytes(96), 5.0, 0.0)
        self.ends: tuple[Engine, Engine] = (dialler, engines.accept(listener, dialler.odcid, 5.0, 0.0))
        self.turn(10)

    def turn(self, times: int) -> None:
        """Let so many half round trips pass."""
        for _ in range(times):
            for engine in self.ends:
                at = engine.next_timer()
                if at is not None and at <= self.now:
                    engine.on_timer(self.now)
            flights = [engine.transmit(self.now) for engine in self.ends]
            self.collect()
            self.now += 0.01
            for engine, flight in zip(reversed(self.ends), flights, strict=True):
                for datagram in flight:
                    engine.receive([datagram], self.now)
            self.collect()

    def collect(self) -> None:
        for told, engine in zip(self.told, self.ends, strict=True):
            told += [e for e in engine.events() if not isinstance(e, CidIssued | CidRetired)]


@pytest.mark.parametrize("kind", ["model", "aioquic"])
def test_the_model_tells_what_real_quic_tells_in_the_same_order(kind: str) -> None:
    pair = Pair(ModelEngines(random.Random(1).randbytes) if kind == "model" else pick_engine("aioquic"))
    dialler, listener = pair.ends
    assert dialler.peer_certificate_key == bytes(Identity(bytes([2]) * 32).id)
    assert dialler.handshake_confirmed
    first, second = dialler.open_stream(), dialler.open_stream()
    assert (first, second) == (0, 4)
    dialler.send(first, b"ask", fin=True)
    pair.turn(4)
    listener.send(first, b"answer", fin=True)
    dialler.send(second, b"more")
    pair.turn(4)
    assert dialler.in_flight() == dialler.queued_bytes(second) == 0
    dialler.reset(second, 7)
    pair.turn(4)
    third = listener.open_stream()
    assert third == 1
    listener.send(third, b"hello")
    pair.turn(4)
    dialler.stop(third, 9)
    pair.turn(6)
    listener.close(3, "bye")
    pair.turn(4)
    assert pair.told[0] == [
        HandshakeDone("X25519MLKEM768", ANY),
        StreamData(0, b"answer", True),
        StreamData(1, b"hello", False),
        StreamReset(1, 9),
        Terminated(3, "bye", True),
    ]
    assert pair.told[1] == [
        HandshakeDone("X25519MLKEM768", ANY),
        StreamData(0, b"ask", True),
        StreamData(4, b"more", False),
        StreamReset(4, 7),
        StopSending(1, 9),
    ]
    assert [engine.transmit(pair.now) for engine in pair.ends] == [[], []]


@pytest.mark.parametrize("kind", ["model", "aioquic"])
def test_both_end_a_connection_that_hears_nothing(kind: str) -> None:
    pair = Pair(ModelEngines(random.Random(1).randbytes) if kind == "model" else pick_engine("aioquic"))
    dialler, _ = pair.ends
    while not pair.told[0][1:] and pair.now < 20.0:
        pair.now += 0.1
        at = dialler.next_timer()
        if at is not None and at <= pair.now:
            dialler.on_timer(pair.now)
        dialler.transmit(pair.now)
        pair.collect()
    last = pair.told[0][-1]
    assert isinstance(last, Terminated)
    assert last.code == IDLE
    assert pair.now == pytest.approx(5.1, abs=0.3)
    assert dialler.next_timer() is None
