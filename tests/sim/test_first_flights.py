"""First flights of two datagrams, as a hybrid key share makes them: each with its knock, in any order, kept whole."""

from __future__ import annotations

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import HANDSHAKE_TIMEOUT_S, HELD_INITIAL_S, MAX_FLIGHT
from meshnode.identity.keys import Identity
from meshnode.identity.sealing import MeshKey, Sealer
from meshnode.quic.connection import Connection
from meshnode.quic.engines import pick_engine
from meshnode.quic.packets import initial_token
from meshnode.quic.seam import Engine, HandshakeDone
from meshnode.sim.world import SimNode, Weather, World
from tests.engines import every_engine

SOURCE = Addr("203.0.113.9", 9)
HYBRID = "X25519MLKEM768"


class Scene:
    """A listener in the simulator, and a dialler whose datagrams are given to it by hand."""

    def __init__(self, engine: str) -> None:
        self.world = World(3, Weather(delay=0.01))
        self.node = SimNode(self.world, "10.0.0.1", pick_engine(engine), gossip=False)
        self.sent: list[bytes] = []
        deliver = self.world.deliver

        def note(source: Addr, to: Addr, datagram: bytes, nat: object = None) -> None:
            if to == SOURCE:
                self.sent.append(datagram)
            deliver(source, to, datagram, nat)  # type: ignore[arg-type]

        self.world.deliver = note  # type: ignore[method-assign]
        self.world.run(0.5)

    def dial(self, engine: str, identity: Identity) -> tuple[Engine, list[bytes]]:
        """A dialler's engine and its first flight."""
        context = self.node.mesh.context
        sealer = Sealer(identity, MeshKey.from_text("sim"), context.clock, self.world.entropy, born=0.0)
        dialler = pick_engine(engine).dial(
            identity, self.node.id, lambda odcid: sealer.knock(self.node.id, odcid), 30.0, self.world.now
        )
        return dialler, dialler.transmit(self.world.now)

    def give(self, *datagrams: bytes) -> None:
        for data in datagrams:
            self.node.receive(data, SOURCE)
        self.world.run(0.05)

    def arrival(self, identity: Identity) -> Connection | None:
        session = self.node.mesh.sessions.get(identity.id)
        return next(iter(session.arrivals), None) if session is not None else None

    def count(self, name: str) -> int:
        return self.node.mesh.metrics.counters.get(name, 0)


def with_another_knock(datagram: bytes) -> bytes:
    """The same Initial with one bit of its token changed."""
    token = initial_token(datagram)
    assert token is not None
    at = datagram.index(token)
    return datagram[:at] + bytes([token[0] ^ 1]) + datagram[at + 1 :]


ME = Identity(bytes(31) + b"\x07")


@every_engine
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_flight_of_two_begins_one_handshake_in_either_order(engine: str, order: tuple[int, int]) -> None:
    scene = Scene(engine)
    dialler, flight = scene.dial("auto", ME)
    assert len(flight) == 2
    scene.give(*(flight[at] for at in order))
    for data in scene.sent:
        dialler.receive([data], scene.world.now)
    assert scene.count("accepts") == 1
    assert [event.group for event in dialler.events() if isinstance(event, HandshakeDone)] == [HYBRID]


@every_engine
def test_an_initial_of_a_flight_that_lacks_its_knock_is_dropped_by_name_and_not_read(engine: str) -> None:
    scene = Scene(engine)
    _, flight = scene.dial("auto", ME)
    scene.give(flight[0])
    arrival = scene.arrival(ME)
    assert arrival is not None
    read = arrival.bytes_in
    scene.give(with_another_knock(flight[1]))
    assert scene.count("drop_initial_knock") == 1
    assert arrival.bytes_in == read
    scene.give(flight[1])
    assert arrival.bytes_in > read
    assert scene.count("drop_initial_knock") == 1


@every_engine
@pytest.mark.parametrize("half", [0, 1])
def test_a_half_without_a_valid_knock_brings_no_byte_and_no_state(engine: str, half: int) -> None:
    scene = Scene(engine)
    _, flight = scene.dial("auto", ME)
    scene.give(*[with_another_knock(flight[half])] * 3)
    assert scene.sent == []
    assert ME.id not in scene.node.mesh.sessions
    assert scene.count("drop_knock") == 3


@every_engine
@pytest.mark.parametrize("half", [0, 1])
def test_half_a_flight_is_answered_by_at_most_three_times_its_size_and_forgotten(engine: str, half: int) -> None:
    scene = Scene(engine)
    _, flight = scene.dial("auto", ME)
    scene.give(flight[half])
    assert scene.arrival(ME) is not None
    scene.world.run(HANDSHAKE_TIMEOUT_S + 1)
    assert scene.arrival(ME) is None
    assert sum(map(len, scene.sent)) <= 3 * len(flight[half])


def test_a_flight_that_is_kept_aside_is_kept_whole_and_no_more() -> None:
    scene = Scene("auto")
    peer = next(
        identity for n in range(99) if scene.node.id < (identity := Identity(bytes([n]) * 32)).id
    )  # whose dial yields to the listener's own
    _, flight = scene.dial("auto", peer)
    scene.node.mesh.connect(peer.id, scene.world.now, lambda _: None)
    session = scene.node.mesh.sessions[peer.id]
    scene.node.mesh.add_seed(peer.id, [Addr("203.0.113.200", 1)], scene.world.now)
    assert session.dial is not None
    for data in (*flight, flight[1], with_another_knock(flight[1]), *flight):
        scene.node.receive(data, SOURCE)
    held = session.held
    assert held is not None
    assert held.datagrams == flight
    assert len(held.datagrams) <= MAX_FLIGHT
    scene.world.run(HELD_INITIAL_S + 0.1)
    arrival = scene.arrival(peer)
    assert arrival is not None
    assert arrival.bytes_in >= sum(map(len, flight)), "accepted when this node's own dial got no answer"
