"""The modelled link: it delivers what real QUIC would, under loss, duplicates, reordering and moves."""

from __future__ import annotations

import random

import pytest

from meshnode.address import Addr
from meshnode.errors import PeerIdentityError, StreamLimitError
from meshnode.sim.link import ModelEngine, ModelEngines
from meshnode.sim.plain import PlainSealer
from meshnode.sim.world import SimNode, Weather, World

ROUGH = Weather(delay=0.02, jitter=0.02, loss=0.05, duplicate=0.05)


def _mesh(seed: int, weather: Weather, count: int = 3) -> tuple[World, list[SimNode]]:
    world = World(seed, weather)
    engines = ModelEngines(world.entropy)
    nodes = [SimNode(world, f"10.0.0.{i + 1}", engines, seed_role=i == 0, sealer=PlainSealer) for i in range(count)]
    for node in nodes[1:]:
        node.join(nodes[0])
    world.run(3.0)
    return world, nodes


def test_a_lost_welcome_is_not_mistaken_for_a_restart_of_the_dialler() -> None:
    world, nodes = _mesh(1, Weather(delay=0.05))
    carry = world.deliver
    lost: list[bytes] = []

    def drop_the_first_welcome(source: Addr, to: Addr, datagram: bytes) -> None:
        if source == nodes[2].addr and datagram[0] & 0xC0 == 0x40 and not lost:
            lost.append(datagram)
        else:
            carry(source, to, datagram)

    world.deliver = drop_the_first_welcome  # type: ignore[method-assign]
    nodes[1].connect(nodes[2].id, 2.0)
    assert lost


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
        before = world.now
        world.run(0.2)
        assert world.now - before < 0.3
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


def test_whoever_proves_another_key_is_refused() -> None:
    world, nodes = _mesh(4, Weather(delay=0.01))
    real = ModelEngines.accept

    class Liars(ModelEngines):
        def accept(self, identity, odcid, idle_timeout, now):  # type: ignore[no-untyped-def]
            return real(self, nodes[0].mesh.identity, odcid, idle_timeout, now)

    nodes[2].mesh._engines = Liars(world.entropy)
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
