"""Datagrams as large as the path carries, with every engine: large at once within a host, smaller after a move."""

from __future__ import annotations

from itertools import count

import pytest

from meshnode.base.limits import BASE_MTU, LOOPBACK_MTU
from meshnode.identity.keys import Identity
from meshnode.quic.engines import pick_engine
from meshnode.quic.seam import Engine, HandshakeDone, StreamData, Terminated

NAMES = ["aioquic", "qh3"]
HALF = 1 << 20
STEP_S = 0.001


class Wire:
    """Two engines and what passes between them; datagrams over ``carries`` bytes are lost."""

    def __init__(self, one: str, other: str, size: int) -> None:
        self.now = 0.0
        self.carries = LOOPBACK_MTU
        self.sizes: dict[Engine, list[int]] = {}
        self.got = self.done = 0
        me, peer = Identity.generate(), Identity.generate()
        dialler = pick_engine(one).dial(me, peer.id, lambda _: bytes(96), 60.0, self.now, size)
        listener = pick_engine(other).accept(peer, dialler.odcid, 60.0, self.now, size)
        self.ends = {"dialler": dialler, "listener": listener}
        self.sizes = {dialler: [], listener: []}

    def step(self) -> None:
        self.now += STEP_S
        dialler, listener = self.ends.values()
        for source, target in ((dialler, listener), (listener, dialler)):
            at = source.next_timer()
            if at is not None and at <= self.now:
                source.on_timer(self.now)
            datagrams = source.transmit(self.now)
            self.sizes[source] += map(len, datagrams)
            target.receive([data for data in datagrams if len(data) <= self.carries], self.now)
            for event in [*source.events(), *target.events()]:
                assert not isinstance(event, Terminated)
                self.done += isinstance(event, HandshakeDone)
                if isinstance(event, StreamData):
                    self.got += len(event.data)
                    target.consumed(event.stream_id, len(event.data))

    def until(self, got: int) -> None:
        for number in count():
            if self.got >= got:
                return
            assert number < 20_000, f"{self.got} of {got} bytes"
            self.step()


@pytest.mark.parametrize("sender", ["dialler", "listener"])
@pytest.mark.parametrize("other", NAMES)
@pytest.mark.parametrize("one", NAMES)
def test_datagrams_are_as_large_as_the_path_and_shrink_with_it_without_a_loss(
    one: str, other: str, sender: str
) -> None:
    if "qh3" in (one, other):
        pytest.importorskip("qh3")
    wire = Wire(one, other, LOOPBACK_MTU)
    while wire.done < 2:
        wire.step()
    engine = wire.ends[sender]
    first = wire.ends["dialler"].open_stream()
    wire.ends["dialler"].send(first, b"!")
    wire.until(1)
    engine.set_datagram_size(LOOPBACK_MTU)
    engine.send(first, bytes(HALF))
    wire.until(1 + HALF)
    assert 0.9 * LOOPBACK_MTU < max(wire.sizes[engine]) <= LOOPBACK_MTU
    engine.send(first, bytes(HALF))
    wire.carries = BASE_MTU  # what is under way is lost
    wire.step()
    engine.set_datagram_size(BASE_MTU)
    wire.sizes[engine].clear()
    wire.until(1 + 2 * HALF)
    assert max(wire.sizes[engine]) <= BASE_MTU


@pytest.mark.parametrize("engine", NAMES)
def test_the_first_flight_of_a_dial_is_what_every_path_carries_unless_it_stays_within_the_host(engine: str) -> None:
    pytest.importorskip(engine)
    for size, most in ((BASE_MTU, BASE_MTU), (LOOPBACK_MTU, LOOPBACK_MTU)):
        wire = Wire(engine, engine, size)
        while wire.done < 2:
            wire.step()
        assert max(max(sizes) for sizes in wire.sizes.values()) <= most


@pytest.mark.parametrize("engine", NAMES)
def test_a_reader_that_takes_much_at_a_time_grants_again_before_anything_else_is_sent(engine: str) -> None:
    pytest.importorskip(engine)
    wire = Wire(engine, engine, LOOPBACK_MTU)
    while wire.done < 2:
        wire.step()
    dialler, listener = wire.ends.values()
    stream = dialler.open_stream()
    dialler.send(stream, bytes(4 * HALF))
    arrived = 0
    for _ in range(1000):  # as far as the window goes; nothing is taken
        wire.now += STEP_S
        listener.receive(dialler.transmit(wire.now), wire.now)
        arrived += sum(len(event.data) for event in listener.events() if isinstance(event, StreamData))
        dialler.receive(listener.transmit(wire.now), wire.now)
    assert arrived == 2 * HALF
    for _ in range(2):
        listener.consumed(stream, HALF)
        dialler.receive(listener.transmit(wire.now), wire.now)
        assert not [event for event in listener.events() if isinstance(event, Terminated)]
    wire.until(2 * HALF)
