"""A source of records that exists in this file alone: one that is asked, as the Mainline DHT would be.

It is one class and one call of ``add_source``. Two nodes that share no seed, no LAN and no DHT find each other by it.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from meshnode.base.address import Addr
from meshnode.discovery.resolver import Resolved
from meshnode.discovery.source import RecordSource, Sink
from meshnode.errors import MeshError, NotFound
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import Endpoint, EndpointRecord, sign_record
from meshnode.quic.connection import State
from meshnode.quic.engines import pick_engine
from meshnode.sim.world import SimNode, World

ANSWER_S = 0.4


class Board(RecordSource):
    """A notice board far away: records are pinned to it, and it answers a question ``ANSWER_S`` later."""

    name = "board"

    def __init__(self, world: World, notices: dict[NodeId, bytes]) -> None:
        self.asked: list[NodeId] = []
        self.moves = 0
        self._world = world
        self._notices = notices
        self._sink: Sink

    def start(self, sink: Sink, now: float) -> None:
        """RecordSource."""
        self._sink = sink

    def publish(self, record: EndpointRecord, now: float) -> None:
        """RecordSource."""
        self._notices[record.id] = record.encoded

    def resolve(self, peer: NodeId, now: float) -> None:
        """RecordSource."""
        self.asked.append(peer)
        self._world.at(now + ANSWER_S, lambda: self._answer(peer))

    def moved(self, now: float) -> None:
        """RecordSource."""
        self.moves += 1

    def status(self) -> dict[str, object]:
        """RecordSource."""
        return {"asked": len(self.asked)}

    def _answer(self, peer: NodeId) -> None:
        if self._sink.is_wanted(peer) and peer in self._notices:
            self._sink.record(self._notices[peer])


class Place:
    """Two nodes that know nothing of each other, and the board."""

    def __init__(self) -> None:
        self.world = World(5)
        self.notices: dict[NodeId, bytes] = {}
        engines = pick_engine("auto")
        self.here = SimNode(self.world, "10.0.0.1", engines)
        self.there = SimNode(self.world, "10.0.0.2", engines)
        self.boards = [Board(self.world, self.notices) for _ in range(2)]
        for node, board in zip((self.here, self.there), self.boards, strict=True):
            node.mesh.add_source(board)

    def resolve(self, peer: NodeId, seconds: float = 30.0) -> Resolved | NotFound:
        """Ask all sources of ``here``."""
        answers: list[Resolved | NotFound] = []
        self.here.mesh.resolve(peer, self.world.now, answers.append)
        self.here.on_dirty()
        assert self.world.run(seconds, lambda: bool(answers))
        return answers[0]


def test_a_source_that_is_asked_answers_under_its_name() -> None:
    place = Place()
    found = place.resolve(place.there.id)
    assert isinstance(found, Resolved)
    assert (found.record.id, found.source) == (place.there.id, "board")
    assert found.ms == pytest.approx(ANSWER_S * 1000, abs=1)
    assert place.boards[0].asked == [place.there.id]
    assert isinstance(place.resolve(place.there.id), Resolved)
    assert place.boards[0].asked == [place.there.id], "the second answer comes from the cache"


def test_a_source_that_starts_late_is_asked_what_waits() -> None:
    place = Place()
    late = SimNode(place.world, "10.0.0.3", pick_engine("auto"))
    answers: list[Resolved | NotFound] = []
    late.mesh.resolve(place.there.id, place.world.now, answers.append)
    place.world.run(0.5)
    late.mesh.add_source(Board(place.world, place.notices))
    assert place.world.run(1.0, lambda: bool(answers))
    assert isinstance(answers[0], Resolved)


def test_a_connection_begins_with_a_record_of_that_source() -> None:
    place = Place()
    assert place.here.connect(place.there.id).state is State.READY


def test_a_node_found_by_it_becomes_a_contact_of_the_dht() -> None:
    place = Place()
    place.resolve(place.there.id)
    place.world.run(2.0)
    assert [peer for peer, _ in place.here.mesh.dht.contacts()] == [place.there.id]


def test_it_is_told_of_moves_and_publishes_the_new_record() -> None:
    place = Place()
    before = place.notices[place.here.id]
    place.here.move("10.0.9.9")
    place.world.run(1.0)
    assert place.boards[0].moves == 1
    assert place.notices[place.here.id] != before


def test_what_it_makes_up_is_dropped_and_counted() -> None:
    place = Place()
    place.notices[place.there.id] = b"junk"
    with pytest.raises(MeshError):
        place.here.connect(place.there.id, seconds=3.0)
    assert place.here.mesh.metrics.counters["record_malformed"] >= 1


def test_the_newest_record_wins_whatever_the_source() -> None:
    """An old record on the board does not displace the one that came another way."""
    place = Place()
    peer = Identity(bytes(range(32)))

    def record(seq: int) -> EndpointRecord:
        issued = int(place.world.wall() * 1000)
        return sign_record(peer, seq=seq, issued_ms=issued, ttl=600, endpoints=(Endpoint(Addr("10.0.0.7", 7)),))

    place.here.mesh.offer_record(record(5).encoded, "ticket", place.world.now)
    place.boards[0]._sink.record(record(4).encoded)
    found = place.resolve(peer.id)
    assert isinstance(found, Resolved)
    assert (found.record.seq, found.source) == (5, "ticket")
    place.boards[0]._sink.record(record(6).encoded)
    found = place.resolve(peer.id)
    assert isinstance(found, Resolved)
    assert (found.record.seq, found.source) == (6, "board")


def test_nothing_is_taken_from_a_source_after_the_close() -> None:
    place = Place()
    encoded = place.notices[place.there.id]
    place.here.mesh.close(place.world.now)
    place.boards[0]._sink.record(encoded)
    place.boards[0]._sink.seed(place.there.id, [place.there.addr])
    assert not place.here.mesh.resolution.hints
    assert place.here.mesh.resolution.cached(place.there.id) is None


class Phonebook(RecordSource):
    """Addresses from a configuration: no records, so the first connection brings the record."""

    name = "phonebook"

    def __init__(self, entries: Iterable[tuple[NodeId, Addr]]) -> None:
        self._entries = list(entries)

    def start(self, sink: Sink, now: float) -> None:
        """RecordSource."""
        for peer, addr in self._entries:
            sink.seed(peer, [addr])


def test_a_source_may_hand_in_addresses_alone() -> None:
    place = Place()
    place.notices.clear()
    place.here.mesh.add_source(Phonebook([(place.there.id, place.there.addr)]))
    assert place.here.connect(place.there.id).state is State.READY
