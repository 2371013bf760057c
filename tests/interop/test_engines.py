"""Two QUIC engines that we did not write, as whole nodes against each other in every combination, in virtual time."""

from __future__ import annotations

import importlib
import itertools
import random
import sys
from itertools import pairwise

import pytest

from meshnode.base.limits import STREAM_HIGH_WATER
from meshnode.errors import ConfigError, MeshError, PolicyDenied
from meshnode.quic.connection import State
from meshnode.quic.engines import VARIABLE, pick_engine
from meshnode.quic.stream import Stream
from meshnode.sim.world import Inbox, SimNode, Weather, World, echo_stream
from meshnode.trust.parties import NONE
from tests.conftest import MakeNode, echo

try:
    pick_engine("qh3")
    MISSING = ""
except ConfigError as error:
    MISSING = error.message

NEEDS_QH3 = pytest.mark.skipif(bool(MISSING), reason=MISSING)
NAMES = ("aioquic", "qh3")
PAIRS = [
    pytest.param(pair, id="-dials-".join(pair), marks=[NEEDS_QH3] if "qh3" in pair else [])
    for pair in itertools.product(NAMES, NAMES)
]
WINDOWS = 6 << 20  # what the two engines and the stream's queue may hold together for a reader that does not read
CONNECTION_BACKLOG = 10 << 20  # unread bytes that all streams of a connection may make a listener keep
every_pair = pytest.mark.parametrize("pair", PAIRS)
Pair = tuple[str, str]


def _nodes(pair: Pair, weather: Weather, seed: int = 1) -> tuple[World, SimNode, SimNode]:
    """A dialler and a listener with the engines of ``pair``, and a third node that both know."""
    world = World(seed, weather)
    friend = SimNode(world, "10.0.0.9", pick_engine("aioquic"), seed_role=True)
    dialler, listener = (SimNode(world, f"10.0.0.{n + 1}", pick_engine(name)) for n, name in enumerate(pair))
    for node in (dialler, listener):
        node.join(friend)
    world.run(2.0)
    return world, dialler, listener


def _send(world: World, stream: Stream, payload: bytes, chunk: int = 1 << 16) -> None:
    """Write as an application does: on when the queue is low, ended at the end."""
    pieces = [payload[at : at + chunk] for at in range(0, len(payload), chunk)]
    before = stream.on_change

    def go_on() -> None:
        while pieces and not stream.fin_sent and stream.error is None and stream.drained():
            stream.write(pieces.pop(0), fin=not pieces)

    def changed() -> None:
        before()
        go_on()

    stream.on_change = changed
    go_on()


def _collect(listener: SimNode) -> Inbox:
    inbox = Inbox()

    def opened(stream: Stream) -> None:
        def changed() -> None:
            data = stream.read()
            if data:
                inbox.data += data
                inbox.times.append(listener.world.now)

        stream.on_change = changed
        changed()

    listener.on_stream_opened = opened
    return inbox


# ---- whole nodes in a virtual network


@every_pair
def test_bytes_are_echoed_both_ways(pair: Pair) -> None:
    world, dialler, listener = _nodes(pair, Weather(delay=0.02))
    connection = dialler.connect(listener.id)
    back = next(iter(listener.mesh.sessions[dialler.id].connections()))
    for node, side in ((dialler, connection), (listener, back)):
        stream, inbox = node.open(side)
        stream.write(b"hello")
        assert world.run(1.0, lambda inbox=inbox: bytes(inbox.data) == b"hello")  # type: ignore[misc]


@pytest.mark.parametrize("name", [pytest.param("aioquic"), pytest.param("qh3", marks=NEEDS_QH3)])
def test_no_timer_holds_a_burst_of_small_messages_on_a_short_path(name: str) -> None:
    world, dialler, listener = _nodes((name, name), Weather(delay=0.0005))
    connection = dialler.connect(listener.id)
    stream = dialler.open(connection)[0]
    world.run(0.1)
    engine, left = connection.engine, []
    for _ in range(16):
        engine.send(stream.id, bytes(64))
        left.append(len(engine.transmit(world.now)))
    assert left == [1] * 16


@NEEDS_QH3
def test_what_no_application_answers_is_acknowledged_without_a_timer() -> None:
    world, dialler, listener = _nodes(("qh3", "qh3"), Weather(delay=0.0005))
    here = dialler.connect(listener.id).engine
    stream = dialler.open(dialler.mesh.sessions[listener.id].connection)[0]  # type: ignore[arg-type]
    there = listener.mesh.sessions[dialler.id].connection.engine  # type: ignore[union-attr]
    world.run(5.0)
    here.ping()
    assert there.receive(here.transmit(world.now), world.now)
    assert len(there.transmit(world.now)) == 1, "of a PING"
    here.send(0, b"\0\2\x81\x06")
    assert there.receive(here.transmit(world.now), world.now)
    there.events()
    assert len(there.transmit(world.now)) == 1, "of a frame of the control stream"
    here.send(stream.id, b"question")
    assert there.receive(here.transmit(world.now), world.now)
    assert there.transmit(world.now) == [], "it waits a millisecond for the answer"


@every_pair
def test_two_megabytes_arrive_intact_through_one_percent_of_loss(pair: Pair) -> None:
    world, dialler, listener = _nodes(pair, Weather(delay=0.01, jitter=0.002, loss=0.01))
    inbox = _collect(listener)
    stream, _ = dialler.open(dialler.connect(listener.id))
    payload = random.Random(5).randbytes(2 << 20)
    _send(world, stream, payload)
    assert world.run(60.0, lambda: len(inbox.data) >= len(payload)), len(inbox.data)
    assert bytes(inbox.data) == payload


@every_pair
def test_a_listener_sends_as_much_back_intact(pair: Pair) -> None:
    world, dialler, listener = _nodes(pair, Weather(delay=0.01, jitter=0.002, loss=0.01))
    payload = random.Random(6).randbytes(2 << 20)
    listener.on_stream_opened = lambda stream: _send(world, stream, payload)
    _, inbox = dialler.open(dialler.connect(listener.id))
    assert world.run(60.0, lambda: len(inbox.data) >= len(payload)), len(inbox.data)
    assert bytes(inbox.data) == payload


@every_pair
@pytest.mark.parametrize("mover", ["dialler", "listener", "both"])
def test_a_transfer_goes_on_when_an_end_moves(pair: Pair, mover: str) -> None:
    world, dialler, listener = _nodes(pair, Weather(delay=0.02, jitter=0.002, loss=0.002))
    inbox = _collect(listener)
    stream, _ = dialler.open(dialler.connect(listener.id))
    payload = random.Random(7).randbytes(2 << 20)
    _send(world, stream, payload)
    assert world.run(60.0, lambda: len(inbox.data) > 300_000)
    moved = world.now
    if mover in ("dialler", "both"):
        dialler.move("10.0.1.1")
    if mover in ("listener", "both"):
        listener.move("10.0.2.1")
    assert world.run(60.0, lambda: len(inbox.data) >= len(payload)), len(inbox.data)
    assert bytes(inbox.data) == payload
    gap = max(b - a for a, b in pairwise(inbox.times) if moved - 0.05 < b < moved + 1.0)
    assert gap < 0.5, f"{gap * 1000:.0f} ms of silence"


@every_pair
def test_many_streams_do_not_mix_their_bytes(pair: Pair) -> None:
    world, dialler, listener = _nodes(pair, Weather(delay=0.01, loss=0.01))
    connection = dialler.connect(listener.id)
    random_bytes = random.Random(8).randbytes
    sent = []
    for _ in range(90):
        stream, inbox = dialler.open(connection)
        payload = random_bytes(3000)
        stream.write(payload)
        sent.append((payload, inbox))
    assert world.run(20.0, lambda: all(bytes(inbox.data) == payload for payload, inbox in sent))


@every_pair
def test_more_streams_than_granted_are_a_named_error_and_some_later_succeed(pair: Pair) -> None:
    world, dialler, listener = _nodes(pair, Weather(delay=0.01))
    connection = dialler.connect(listener.id)
    streams: list[Stream] = []
    with pytest.raises(MeshError) as caught:
        for _ in range(3000):
            streams.append(dialler.open(connection)[0])
    assert caught.value.code == "stream_limit"
    assert len(streams) >= 90
    listener.on_stream_opened = lambda stream: stream.write(b"", fin=True)
    for stream in streams:
        stream.write(b"", fin=True)
    world.run(2.0)
    for stream in streams:
        stream.read()
    stream, inbox = dialler.open(connection)
    listener.on_stream_opened = echo_stream
    stream.write(b"again")
    assert world.run(2.0, lambda: bytes(inbox.data) == b"again")


@every_pair
def test_a_reader_that_does_not_read_holds_the_sender(pair: Pair) -> None:
    world, dialler, listener = _nodes(pair, Weather(delay=0.01))
    held: list[Stream] = []
    listener.on_stream_opened = held.append
    stream, _ = dialler.open(dialler.connect(listener.id))
    sent = 0
    highest = 0
    for _ in range(2000):
        if stream.drained():
            stream.write(bytes(1 << 16))
            sent += 1 << 16
        highest = max(highest, stream.queued)
        world.run(0.005)
    assert sent < WINDOWS, sent
    assert highest <= STREAM_HIGH_WATER + (1 << 16), "what is queued at the sender is bounded too"
    arrived = 0
    deadline = world.now + 20
    while arrived < sent and world.now < deadline:
        arrived += len(held[0].read())
        listener.on_dirty()
        world.run(0.01)
    assert arrived == sent, "and every byte comes when it reads at last"


@every_pair
def test_a_reader_that_does_not_read_leaves_the_other_streams_alone(pair: Pair) -> None:
    world, dialler, listener = _nodes(pair, Weather(delay=0.01))
    connection = dialler.connect(listener.id)
    held: list[Stream] = []
    listener.on_stream_opened = held.append
    stuck, _ = dialler.open(connection)
    _send(world, stuck, bytes(8 << 20))
    world.run(5.0)
    assert len(held) == 1
    listener.on_stream_opened = echo_stream
    stream, inbox = dialler.open(connection)
    payload = random.Random(4).randbytes(5 << 20)
    _send(world, stream, payload)
    assert world.run(30.0, lambda: len(inbox.data) >= len(payload)), len(inbox.data)
    assert bytes(inbox.data) == payload
    assert held[0].buffered < WINDOWS


@every_pair
def test_all_the_readers_of_a_connection_together_are_owed_a_bounded_backlog(pair: Pair) -> None:
    world, dialler, listener = _nodes(pair, Weather(delay=0.005))
    connection = dialler.connect(listener.id)
    held: list[Stream] = []
    listener.on_stream_opened = held.append
    for _ in range(5):
        _send(world, dialler.open(connection)[0], bytes(3 << 20))
    world.run(3.0)
    back = next(iter(listener.mesh.sessions[dialler.id].connections()))
    assert sum(stream.buffered for stream in back.streams) < CONNECTION_BACKLOG
    got = 0
    while got < 15 << 20 and world.now < 100:
        got += sum(len(stream.read()) for stream in list(back.streams))
        listener.on_dirty()
        world.run(0.05)
    assert got == 15 << 20, "and all of it comes when they read"


@every_pair
def test_a_reader_that_reads_by_fits_and_starts_gets_all_of_it_through_heavy_loss(pair: Pair) -> None:
    """Many windows' worth, each used up to its end: a grant that was lost must come again."""
    world, dialler, listener = _nodes(pair, Weather(delay=0.005, loss=0.08), seed=3)
    held: list[Stream] = []
    listener.on_stream_opened = held.append
    stream, _ = dialler.open(dialler.connect(listener.id))
    payload = random.Random(2).randbytes(5 << 20)
    _send(world, stream, payload)
    got = bytearray()
    while len(got) < len(payload) and world.now < 400:
        world.run(3.0)
        got += held[0].read()
        listener.on_dirty()
    assert bytes(got) == payload


@every_pair
@pytest.mark.parametrize("how", ["reset", "stop_reading"])
def test_an_acceptor_that_drops_a_stream_in_full_flow_keeps_the_connection(pair: Pair, how: str) -> None:
    world, dialler, listener = _nodes(pair, Weather(delay=0.02))
    connection = dialler.connect(listener.id)
    inbox = _collect(listener)
    collect, opened = listener.on_stream_opened, list[Stream]()
    listener.on_stream_opened = lambda stream: (opened.append(stream), collect(stream))[0]
    stream, _ = dialler.open(connection)
    _send(world, stream, bytes(8 << 20))
    assert world.run(5.0, lambda: len(inbox.data) > 500_000)
    if how == "stop_reading":
        opened[0].write(b"", fin=True)
    getattr(opened[0], how)()
    listener.on_dirty()
    world.run(2.0)
    assert connection.state is State.READY, connection.error
    listener.on_stream_opened = echo_stream
    stream, inbox = dialler.open(connection)
    stream.write(b"still there?")
    assert world.run(1.0, lambda: bytes(inbox.data) == b"still there?")


@every_pair
def test_streams_that_their_sender_resets_unread_do_not_use_up_the_connection(pair: Pair) -> None:
    world, dialler, listener = _nodes(pair, Weather(delay=0.01))
    connection = dialler.connect(listener.id)
    for _ in range(5):
        opened: list[Stream] = []
        listener.on_stream_opened = opened.append
        stream, _ = dialler.open(connection)
        _send(world, stream, bytes(3 << 20))
        world.run(1.0)
        assert opened, "the connection still takes streams"
        stream.reset()
        dialler.on_dirty()
        world.run(1.0)


@every_pair
def test_a_peer_that_is_refused_learns_why(pair: Pair) -> None:
    _, dialler, listener = _nodes(pair, Weather(delay=0.02))
    listener.guard.lists.node = NONE
    with pytest.raises(PolicyDenied):
        dialler.connect(listener.id)


# ---- choosing


@pytest.fixture
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `auto` finds by itself, whatever engine these tests run with."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("meshnode.quic.engines.refused", {})


@NEEDS_QH3
def test_auto_is_the_fast_engine_where_it_is_installed_unless_the_environment_says_otherwise(
    nothing_chosen: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pick_engine("auto").name == "qh3"
    monkeypatch.setenv(VARIABLE, "aioquic")
    assert pick_engine("auto").name == "aioquic"
    assert pick_engine("qh3").name == "qh3", "a setting beats the environment here"


def test_auto_is_the_reference_where_the_fast_engine_is_missing(
    nothing_chosen: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("meshnode.quic.engines.find_spec", lambda name: None)
    assert pick_engine("auto").name == "aioquic"
    assert not caplog.records, "as that is no fault"


def _uninstall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qh3", None)
    for module in ("qh3", "qh3_connection"):
        monkeypatch.delitem(sys.modules, f"meshnode.quic.engines.{module}", raising=False)


def test_an_engine_that_is_not_installed_is_a_setting_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    _uninstall(monkeypatch)
    with pytest.raises(ConfigError) as caught:
        pick_engine("qh3")
    assert "pip install qh3" in caught.value.hint


@NEEDS_QH3
def test_another_version_of_the_fast_engine_is_refused_with_the_names_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("meshnode.quic.engines.qh3")
    monkeypatch.setitem(module.PRIVATE, "QuicConnectionCore", "get_timer set_sail")
    with pytest.raises(ImportError, match=r"QuicConnectionCore\.set_sail"):
        module._check()


def test_an_installed_engine_that_does_not_fit_is_passed_over_with_a_warning_once(
    nothing_chosen: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("meshnode.quic.engines.find_spec", lambda name: object())
    _uninstall(monkeypatch)
    assert pick_engine("auto").name == pick_engine("auto").name == "aioquic"
    (said,) = caplog.records
    assert said.levelname == "WARNING"
    assert "qh3 cannot be used, so aioquic is" in said.message


# ---- a real socket


@NEEDS_QH3
@pytest.mark.parametrize("other", NAMES)
async def test_a_node_with_the_fast_engine_serves_and_dials_on_a_real_socket(make_node: MakeNode, other: str) -> None:
    fast = await make_node(engine="qh3")
    peer = await make_node(engine=other, seed=fast)
    for node in (fast, peer):
        node.serve("echo", echo, allow=["any"])
    payload = random.Random(3).randbytes(1 << 20)
    for here, there in ((peer, fast), (fast, peer)):
        reader, writer = await here.open(there.id, "echo")
        writer.write(payload)
        writer.write_eof()
        assert await reader.read() == payload
