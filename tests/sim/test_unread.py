"""What peers send and no application reads: bounded over all connections, and before a Hello."""

from __future__ import annotations

import pytest

from meshnode.base.limits import MAX_EARLY, OPEN_STREAM
from meshnode.quic.connection import State
from meshnode.quic.engines import pick_engine
from meshnode.quic.engines.common import CONNECTION_WINDOW
from meshnode.sim.link import ModelEngines
from meshnode.sim.world import SimNode, Weather, World
from meshnode.stack import unread
from meshnode.stack.unread import UNREAD_FULL


@pytest.mark.parametrize("engine", ["aioquic", "qh3", "model"])
def test_hogs_are_ended_until_all_connections_hold_less_than_the_bound_and_others_go_on(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "qh3":
        pytest.importorskip("qh3")
    monkeypatch.setattr(unread, "MAX_UNREAD", int(2.5 * CONNECTION_WINDOW))
    world = World(1, Weather(delay=0.001))
    engines = ModelEngines(world.entropy) if engine == "model" else pick_engine(engine)
    victim = SimNode(world, "10.0.0.1", engines)
    hogs = [SimNode(world, f"10.0.1.{number + 1}", engines) for number in range(4)]
    honest = SimNode(world, "10.0.2.1", engines)
    for node in (*hogs, honest):
        node.join(victim)
    world.run(2.0)
    kept, inbox = honest.open(honest.connect(victim.id))
    kept.write(b"hello")
    assert world.run(2.0, lambda: bool(inbox.data))
    victim.on_stream_opened = lambda stream: None  # from here on nothing is read but what is open
    hoarded = []
    for hog in hogs:
        connection = hog.connect(victim.id)
        for _ in range(3):
            stream = connection.open("hoard")
            stream.write(bytes(CONNECTION_WINDOW // 2))
        hoarded.append(connection)
    world.run(20.0)
    stack = victim.mesh
    assert sum(one.engine.unread() for one in stack.context.peers.session_of) <= 2.5 * CONNECTION_WINDOW
    assert stack.metrics.counters[UNREAD_FULL] >= 1
    assert any(connection.state is State.CLOSED for connection in hoarded)
    kept.write(b" and more")
    assert world.run(5.0, lambda: len(inbox.data) >= len(b"hello and more"))


def test_streams_that_say_nothing_count_too_and_those_that_open_most_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "MAX_UNREAD", 1_000 * OPEN_STREAM)
    world = World(1, Weather(delay=0.001))
    engines = pick_engine("auto")
    victim = SimNode(world, "10.0.0.1", engines)
    hogs = [SimNode(world, f"10.0.1.{number + 1}", engines) for number in range(3)]
    honest = SimNode(world, "10.0.2.1", engines)
    for node in (*hogs, honest):
        node.join(victim)
    world.run(2.0)
    kept, inbox = honest.open(honest.connect(victim.id))
    links = [hog.connect(victim.id) for hog in hogs]
    for hog, link in zip(hogs, links, strict=True):
        for _ in range(400):
            link.engine.send(link.engine.open_stream(), b"\0")
        hog.mesh.context.links.touch(link)
    world.run(5.0)
    streams = sum(len(one.streams) for one in victim.mesh.context.peers.session_of)
    assert 400 < streams <= 1_000
    assert [link.state for link in links].count(State.CLOSED) == 1
    kept.write(b"hello")
    assert world.run(2.0, lambda: bool(inbox.data))


def test_a_dialler_that_sends_much_and_never_says_hello_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.quic.connection.make_hello", lambda *args, **more: b"")
    world = World(1, Weather(delay=0.001))
    engines = pick_engine("auto")
    victim, foe = (SimNode(world, f"10.0.0.{number}", engines) for number in (1, 2))
    foe.join(victim)
    world.run(0.5)
    answers: list[object] = []
    foe.mesh.connect(victim.id, world.now, answers.append)
    world.run(0.2)
    (half_open,) = victim.mesh.context.peers.session_of
    (dialled,) = foe.mesh.context.peers.session_of
    dialled.engine.send(dialled.engine.open_stream(), bytes(4 * MAX_EARLY))
    foe.mesh.context.links.touch(dialled)
    most = 0
    for _ in range(100):
        world.run(0.01)
        most = max(most, half_open.handshake.size)
        if half_open.state is State.CLOSED:
            break
    assert half_open.state is State.CLOSED
    assert most < MAX_EARLY + 65_536
    assert half_open.handshake.held == []
