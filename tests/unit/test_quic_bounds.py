"""What a peer may make this node keep for it inside QUIC: of TLS bytes, and of control frames that it does not take."""

from __future__ import annotations

import random
from typing import Any

import pytest
from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.quic.packet import QuicFrameType, QuicPacketType, QuicStreamFrame
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.stream import QuicStream

from attacks.frames import kept_of
from meshnode import Identity
from meshnode.base.limits import (
    CONTROL_FRAMES_BURST,
    MAX_CONTROL_QUEUE,
    MAX_CRYPTO,
    MAX_HANDSHAKE,
    MAX_HOLES,
    TOPIC_FRAMES_BURST,
)
from meshnode.base.wire import encode
from meshnode.quic.connection import CONTROL_STREAM, State
from meshnode.quic.engines import pick_engine
from meshnode.quic.engines.common import CONNECTION_WINDOW
from meshnode.quic.engines.ranges import Holes, Ranges, StreamsOf
from meshnode.quic.hello import HEADER, Frame, frame
from meshnode.quic.seam import StreamData, Terminated
from meshnode.sim.world import SimNode, Weather, World
from meshnode.topics.messages import SERVICE, Part, encode_message
from tests.engines import every_engine


def _crypto(quic: Any, offset: int, data: bytes) -> list[bytes]:
    """Return an Initial of the dialler's with one CRYPTO frame."""
    builder = QuicPacketBuilder(
        host_cid=quic.host_cid,
        is_client=True,
        max_datagram_size=1200,
        packet_number=quic._packet_number,
        peer_cid=quic._peer_cid.cid,
        peer_token=quic._peer_token,
        quic_logger=None,
        spin_bit=False,
        version=quic._version,
    )
    builder.start_packet(QuicPacketType.INITIAL, quic._cryptos[tls.Epoch.INITIAL])
    body = Buffer(capacity=16 + len(data))
    body.push_uint_var(offset)
    body.push_uint_var(len(data))
    body.push_bytes(data)
    builder.start_frame(QuicFrameType.CRYPTO, capacity=len(body.data) + 1).push_bytes(body.data)
    datagrams, _ = builder.flush()
    quic._packet_number = builder.packet_number
    return list(datagrams)


def _nodes(world: World, engine: str, **more: Any) -> tuple[SimNode, SimNode, SimNode]:
    """A victim with this engine, a foe whose engine can be made to do anything, and an honest node."""
    victim, foe, honest = (
        SimNode(world, f"10.0.{number}.1", pick_engine(name), **more)
        for number, name in enumerate((engine, "aioquic", engine), 1)
    )
    return victim, foe, honest


@pytest.mark.parametrize(("offset", "is_ended"), [(1_000, False), (MAX_CRYPTO - 4, False), (MAX_CRYPTO, True)])
def test_a_hole_in_a_first_flight_costs_no_more_than_a_handshake_needs(offset: int, is_ended: bool) -> None:
    engines = pick_engine("aioquic")
    own, peer = Identity.generate(), Identity.generate()
    dialler = engines.dial(own, peer.id, lambda odcid: bytes(96), 60.0, 0.0)
    listener = engines.accept(peer, dialler.odcid, 60.0, 0.0)
    for datagram in _crypto(dialler._quic, offset, b"late"):  # type: ignore[attr-defined]
        listener.receive([datagram], 0.0)
    assert any(isinstance(event, Terminated) for event in listener.events()) is is_ended
    stream = listener._quic._crypto_streams[tls.Epoch.INITIAL]  # type: ignore[attr-defined]
    assert len(stream.receiver._buffer) <= MAX_CRYPTO


@pytest.mark.parametrize(
    ("engine", "kind", "is_ended"),
    [
        ("aioquic", "stream_holes", True),
        ("aioquic", "crypto_bytes", False),
        ("qh3", "path_challenges", True),
        ("aioquic", "path_challenges", False),
    ],
)
def test_what_a_storm_of_frames_makes_a_connection_keep_is_bounded(engine: str, kind: str, is_ended: bool) -> None:
    if engine == "qh3":
        pytest.importorskip("qh3")
    kept, ended = kept_of(engine, kind, 150)
    assert ended is is_ended
    assert kept < 2_000


def test_a_window_of_which_every_second_packet_is_lost_ends_no_connection() -> None:
    holes = Holes()
    streams = StreamsOf(holes)
    for number in range(2):
        streams[number] = QuicStream(stream_id=number)
    for number in range(CONNECTION_WINDOW // 1_160 // 2):
        streams[number % 2].receiver.handle_frame(QuicStreamFrame(data=bytes(1_160), offset=(2 * number + 1) * 1_160))


def test_ranges_are_those_of_aioquics_own_set() -> None:
    rng = random.Random(1)
    for _ in range(200):
        own, theirs = Ranges(Holes()), RangeSet()
        for _ in range(60):
            start = rng.randrange(200)
            stop = start + rng.randrange(1, 12)
            own.add(start, stop)
            theirs.add(start, stop)
            if rng.random() < 0.1 and len(theirs):
                assert own.shift() == theirs.shift()
            assert list(own) == list(theirs)


def test_holes_of_streams_that_are_over_count_no_more() -> None:
    holes = Holes()
    streams = StreamsOf(holes)
    for number in range(4):
        streams[number] = stream = QuicStream(stream_id=number)
        for hole in range(MAX_HOLES - 10):
            stream.receiver._ranges.add(2 * hole + 1)
        del streams[number]


@every_engine
def test_what_an_unproven_dialler_may_have_kept_is_bounded(engine: str) -> None:
    own, peer = Identity.generate(), Identity.generate()
    dialler = pick_engine("aioquic").dial(own, peer.id, lambda odcid: bytes(96), 60.0, 0.0)
    listener = pick_engine(engine).accept(peer, dialler.odcid, 60.0, 0.0)
    fed = 0
    for number in range(1_000):
        for datagram in _crypto(dialler._quic, 2_000 + 1_000 * number, bytes(900)):  # type: ignore[attr-defined]
            listener.receive([datagram], 0.0)
            fed += len(datagram)
        if any(isinstance(event, Terminated) for event in listener.events()):
            break
    assert fed < MAX_HANDSHAKE + 3_000


def test_a_peer_that_asks_without_end_and_takes_no_answer_loses_its_connection_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("meshnode.stack.session.CONTROL_FRAMES_BURST", 1e9)
    world = World(1, Weather(delay=0.001))
    victim, foe, honest = _nodes(world, "auto")
    for node in (foe, honest):
        node.join(victim)
    world.run(2.0)
    link = foe.connect(victim.id)
    link.engine._quic._write_stream_limits = lambda *args, **more: None  # type: ignore[attr-defined]
    (there,) = (one for one in victim.mesh.context.peers.session_of if one.peer == foe.id)
    most = 0
    for _ in range(400):
        link.engine.send(CONTROL_STREAM, frame(Frame.RELAY_ASK) * 1_000)
        foe.mesh.context.links.touch(link)
        foe.on_dirty()
        world.run(0.02)
        most = max(most, there.engine.queued_bytes(CONTROL_STREAM) if there.state is State.READY else 0)
        if there.state is State.CLOSED:
            break
    assert there.state is State.CLOSED
    assert most <= MAX_CONTROL_QUEUE + 65_536
    assert honest.connect(victim.id).state is State.READY


@every_engine
@pytest.mark.parametrize("fields", [[int(Frame.GOSSIP_IDLE), True], [int(Frame.RELAY_ASK)], [99]])
def test_a_peer_that_sends_control_frames_without_end_loses_its_connection_only(
    fields: list[object], engine: str
) -> None:
    world = World(1, Weather(delay=0.001))
    victim, foe, honest = _nodes(world, engine)
    for node in (foe, honest):
        node.join(victim)
    world.run(2.0)
    link = foe.connect(victim.id)
    (there,) = (one for one in victim.mesh.context.peers.session_of if one.peer == foe.id)
    body = encode(fields)
    link.engine.send(CONTROL_STREAM, (HEADER.pack(len(body)) + body) * int(CONTROL_FRAMES_BURST * 0.9))
    foe.mesh.context.links.touch(link)
    world.run(1.0)
    assert there.state is State.READY
    link.engine.send(CONTROL_STREAM, (HEADER.pack(len(body)) + body) * 5_000)
    foe.mesh.context.links.touch(link)
    world.run(1.0)
    assert there.state is State.CLOSED
    assert victim.mesh.metrics.counters["control_frames_many"] == 1
    assert honest.connect(victim.id).state is State.READY


@every_engine
def test_a_stream_of_topics_that_brings_messages_without_end_is_ended(engine: str) -> None:
    world = World(1, Weather(delay=0.001))
    victim, foe, _ = _nodes(world, engine, gossip=True)
    foe.join(victim)
    world.run(2.0)
    link = foe.connect(victim.id)
    message = encode_message(Part(bytes(16)))
    piece = len(message).to_bytes(2, "big") + message
    first = link.open(SERVICE)
    first.write(piece * int(TOPIC_FRAMES_BURST * 0.9))
    world.run(0.5)
    assert first.error is None
    first.write(piece * 10_000)
    world.run(0.5)
    assert first.error is not None
    assert victim.mesh.metrics.counters["topic_frames_many"] == 1
    assert link.state is State.READY


@every_engine
def test_probes_of_a_peer_that_is_silent_for_long_do_not_count_against_it(engine: str) -> None:
    """Each nudge sends the oldest in flight again; unheard, they add up to more than any window."""
    engines = pick_engine(engine)
    own, peer = Identity.generate(), Identity.generate()
    dialler = engines.dial(own, peer.id, lambda odcid: bytes(96), 60.0, 0.0)
    listener = engines.accept(peer, dialler.odcid, 60.0, 0.0)
    now, received = 0.0, 0

    def exchange(rounds: int) -> None:
        nonlocal now, received
        for _ in range(rounds):
            now += 0.001
            for here, there in ((dialler, listener), (listener, dialler)):
                due = here.next_timer()
                if due is not None and due <= now:
                    here.on_timer(now)
                there.receive(here.transmit(now), now)
                for event in there.events():
                    assert not isinstance(event, Terminated), event
                    if isinstance(event, StreamData):
                        received += len(event.data)
                        there.consumed(event.stream_id, len(event.data))

    exchange(20)
    stream = dialler.open_stream()
    dialler.send(stream, bytes(100_000))
    while now < 50.0:
        now += 0.02
        dialler.nudge(now)
        dialler.ping()
        dialler.on_timer(now)
        dialler.transmit(now)
        assert not list(dialler.events())
    dialler.nudge(now)
    exchange(1_000)
    assert received == 100_000
