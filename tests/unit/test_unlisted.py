"""Members that are not listed: what a node believes of them, says of itself, and keeps of its seeds and neighbours."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import GOSSIP_PLACES_OF_STANDING
from meshnode.base.metrics import Metrics
from meshnode.base.timers import Timers
from meshnode.gossip import Changed, Contact, Entry, Gossip, Kind, MemberChanged, Probe, Status
from meshnode.gossip.dissemination.entry_store import EntryStore, Put
from meshnode.gossip.dissemination.roll import ASKED
from meshnode.gossip.entry import sign_entry
from meshnode.gossip.kinds import Member
from meshnode.gossip.membership import members
from meshnode.gossip.membership.seeds import LOOK_S, MAX_SILENT_WAIT_S, MAX_WAIT_S, Seeds
from meshnode.gossip.messages import Eager, Neighbour, SyncResponse
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import Endpoint, sign_record

WALL = 1_800_000_000.0
BASE = int(WALL * 1000)
ME, PEER, OTHER, THIRD = (Identity(bytes(31) + bytes([n])) for n in (1, 2, 3, 4))


def _node(*peers: Identity) -> Gossip:
    gossip = Gossip(ME, rng=random.Random(1), metrics=Metrics(), now=0.0, wall=WALL)
    for peer in peers:
        gossip.on_link(peer.id, True, 0.0)
        gossip.on_message(peer.id, Neighbour(True, b""), 0.0)
    gossip.take_effects()
    return gossip


def _run(gossip: Gossip, until: float) -> list[object]:
    """Let time pass at the node; what came of it."""
    effects: list[object] = []
    while (at := gossip.next_deadline()) is not None and at <= until:
        gossip.tick(at, WALL + at)
        effects += gossip.take_effects()
    return effects


def _member(signer: Identity, seq: int) -> Entry:
    value = Member(False, b"").encoded()
    return sign_entry(signer, kind=Kind.MEMBER, name="", seq=BASE + seq, issued_ms=BASE, ttl=7200, value=value)


def _own(effects: list[object]) -> list[int]:
    return [e.entry.kind for e in effects if isinstance(e, Changed) and e.entry.origin == ME.id]


def test_a_neighbour_that_is_not_listed_and_silent_is_gone_for_this_node_and_no_other_hears_of_it() -> None:
    gossip = _node(PEER)
    effects = _run(gossip, 20.0)
    assert gossip.status(PEER.id) is Status.GONE
    assert MemberChanged(PEER.id, Status.GONE, Status.SUSPECT) in effects
    assert _own(effects) == []


def test_a_silent_neighbour_goes_though_a_node_with_too_many_suspects_can_note_no_suspicion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(members, "GOSSIP_MAX_SUSPECTS", 1)
    gossip = _node(PEER)
    gossip.members.on_accused(OTHER.id, THIRD.id, BASE, 0.0)
    gossip.members.on_accused(OTHER.id, ME.id, BASE, 0.0)
    _run(gossip, 60.0)
    assert PEER.id not in gossip.hyparview.active


def test_a_silent_neighbour_that_is_listed_is_accused_before_all() -> None:
    gossip = _node(PEER)
    gossip.on_message(PEER.id, Eager(b"", ((0, _member(PEER, 1).encoded),)), 0.1)
    assert Kind.ACCUSATION in _own(_run(gossip, 20.0))


def test_a_neighbour_in_doubt_is_asked_each_second_and_its_answer_ends_the_doubt() -> None:
    gossip = _node(PEER)
    effects: list[object] = []
    while gossip.status(PEER.id) is not Status.SUSPECT:
        at = gossip.next_deadline()
        assert at is not None
        effects = _run(gossip, at)
        now = at
    assert MemberChanged(PEER.id, Status.SUSPECT, Status.ALIVE) in effects
    assert Probe(Contact(PEER.id)) in _run(gossip, now + 1.2)
    gossip.on_heard(PEER.id, now + 1.2)
    assert gossip.status(PEER.id) is Status.ALIVE
    assert gossip.take_effects() == [MemberChanged(PEER.id, Status.ALIVE, Status.SUSPECT)]


def test_a_node_that_was_gone_and_connects_is_back_though_no_entry_says_so() -> None:
    gossip = _node(PEER)
    _run(gossip, 20.0)
    gossip.on_link(PEER.id, False, 20.0)
    gossip.take_effects()
    gossip.on_link(PEER.id, True, 21.0)
    assert gossip.status(PEER.id) is Status.ALIVE


def test_one_that_this_node_alone_has_for_gone_and_tries_no_more_is_unknown() -> None:
    gossip = _node(PEER)
    _run(gossip, 20.0)
    gossip.on_link(PEER.id, False, 20.0)
    _run(gossip, 3_600.0)
    assert gossip.status(PEER.id) is Status.GONE
    gossip.hyparview.views.lost.clear()  # others pushed it out
    _run(gossip, 3_640.0)
    assert gossip.status(PEER.id) is Status.UNKNOWN


def test_a_suspicion_that_others_share_is_not_ended_by_a_sign_of_life() -> None:
    gossip = _node(PEER)
    gossip.members.on_accused(PEER.id, ME.id, 0, 1.0)
    gossip.members.on_accused(PEER.id, OTHER.id, BASE, 1.0)
    gossip.on_heard(PEER.id, 1.1)
    assert gossip.status(PEER.id) is Status.SUSPECT


def test_whatever_is_connected_is_a_member_and_what_is_not_is_unknown() -> None:
    gossip = _node(PEER)
    assert gossip.status(OTHER.id) is Status.UNKNOWN
    gossip.on_link(OTHER.id, True, 1.0)
    assert OTHER.id not in gossip.hyparview.active
    assert gossip.status(OTHER.id) is Status.ALIVE


def test_a_node_publishes_itself_once_it_has_what_a_neighbour_has() -> None:
    gossip = _node(PEER)
    assert gossip.announce(b"", 0.0) is None
    assert _own(_run(gossip, 1.0)) == []
    gossip.on_message(PEER.id, SyncResponse(1, False, ()), 1.0)
    assert _own(gossip.take_effects()) == [Kind.MEMBER]


@pytest.mark.parametrize("answering", [0, 300])
def test_entries_of_ids_that_run_nowhere_take_no_place_of_the_list(answering: int) -> None:
    """A member publishes entries of 300 throw-away ids, whose records name as many networks."""
    gossip = _node(PEER)
    gossip.announce(b"", 0.0)
    where: dict[NodeId, bool] = {}
    for number in range(300):
        signer = Identity((1000 + number).to_bytes(32, "big"))
        addr = Addr(f"203.{number % 256}.{number // 256}.1", 4000)
        record = sign_record(signer, seq=BASE, issued_ms=BASE, ttl=7200, endpoints=(Endpoint(addr),))
        value = Member(False, record.encoded).encoded()
        entry = sign_entry(signer, kind=Kind.MEMBER, name="", seq=BASE, issued_ms=BASE, ttl=7200, value=value)
        gossip.on_message(PEER.id, Eager(b"", ((0, entry.encoded),)), 0.1)
        where[signer.id] = number < answering
    _run(gossip, 1.0)  # they have their turns
    gossip.on_message(PEER.id, SyncResponse(1, False, ()), 1.0)
    assert Kind.MEMBER not in _own(gossip.take_effects())
    asked, own = 0, []
    while (at := gossip.next_deadline()) is not None and at <= 30.0:
        gossip.on_heard(PEER.id, at)
        gossip.tick(at, WALL + at)
        effects = gossip.take_effects()
        own += _own(effects)
        for effect in effects:
            if isinstance(effect, Probe) and effect.contact.id in where:
                asked += 1
                if where[effect.contact.id]:
                    gossip.on_alive(effect.contact.id, at)
    assert own.count(Kind.MEMBER) == (0 if answering else 1)
    assert asked == ASKED


def test_a_node_that_offers_something_is_listed_and_one_that_says_what_all_may_say_is_not() -> None:
    gossip = _node(PEER)
    gossip.announce(b"", 0.0)
    for kind in (Kind.GRANTS, Kind.TOPIC):
        gossip.publish(kind, "", b"x", 60, 1.0)
    assert Kind.MEMBER not in _own(gossip.take_effects())
    gossip.publish(Kind.SERVICE, "db", b"x", 60, 1.0)
    assert Kind.MEMBER in _own(gossip.take_effects())


def test_a_node_that_no_other_has_heard_of_leaves_without_a_word_to_all() -> None:
    gossip = _node(PEER)
    gossip.announce(b"", 0.0)
    gossip.leave(1.0)
    assert _own(gossip.take_effects()) == []
    listed = _node(PEER)
    listed.announce(b"", 0.0)
    listed.own_entries.listing.must(0.5)
    listed.take_effects()
    listed.leave(1.0)
    assert _own(listed.take_effects()) == [Kind.MEMBER]


def test_a_node_that_had_to_refute_something_publishes_its_moves_from_then_on() -> None:
    gossip = _node(PEER)
    gossip.announce(b"", 0.0)
    assert gossip.announce(b"", 0.5) is None
    old = _member(ME, 5)  # of an earlier life, which others still have
    gossip.on_message(PEER.id, Eager(b"", ((0, old.encoded),)), 1.0)
    assert Kind.MEMBER in _own(gossip.take_effects())
    assert gossip.announce(b"", 2.0) is not None


def _entry(signer: Identity, seq: int, name: str = "") -> Entry:
    return sign_entry(signer, kind=8, name=name, seq=BASE + seq, issued_ms=BASE, ttl=600, value=b"x")


CROWD = [Identity(bytes([number]) * 32) for number in range(100, 200)]


def test_entries_of_seeds_and_neighbours_never_give_way_whenever_they_came() -> None:
    kept: dict[NodeId, None] = {PEER.id: None}
    store = EntryStore(Metrics(), limit=16, is_kept=lambda origin: origin in kept)
    early, late = _entry(PEER, 0), _entry(OTHER, 0)
    for entry in [_entry(signer, seq) for seq, signer in enumerate(CROWD[:15])]:
        store.put(entry, CROWD[0].id)
    assert store.put(early, CROWD[0].id) is Put.NEW
    assert store.put(late, CROWD[0].id) is Put.NEW
    kept[OTHER.id] = None  # it has become a neighbour since
    for seq, signer in enumerate(CROWD[20:], 20):
        store.put(_entry(signer, seq), CROWD[0].id)
    assert store.by_id(early.id) is early
    assert store.by_id(late.id) is late


def test_of_a_seed_or_neighbour_so_many_entries_of_a_kind_are_kept_for_certain_and_the_rest_may_go() -> None:
    store = EntryStore(Metrics(), limit=64, is_kept=lambda origin: origin == PEER.id)
    for seq, signer in enumerate(CROWD[:60]):
        store.put(_entry(signer, seq), CROWD[0].id)
    for number in range(40):
        store.put(_entry(PEER, number, f"n{number}"), CROWD[0].id)
    for seq, signer in enumerate(CROWD[60:], 60):
        store.put(_entry(signer, seq), CROWD[0].id)
    left = sum(entry.origin == PEER.id for entry in store.entries(8))
    assert GOSSIP_PLACES_OF_STANDING <= left < 40


def test_where_all_places_are_kept_what_comes_is_not_taken() -> None:
    store = EntryStore(Metrics(), limit=4, is_kept=lambda origin: origin != OTHER.id)
    entries = [_entry(signer, seq) for seq, signer in enumerate(CROWD[:4])]
    for entry in entries:
        store.put(entry, CROWD[0].id)
    assert store.put(_entry(OTHER, 0), CROWD[0].id) is Put.FULL
    assert [store.by_id(entry.id) for entry in entries] == entries


class _Seeds:
    """A node's one seed, its believed status, and when the node joined through it."""

    def __init__(self) -> None:
        self.status = Status.UNKNOWN
        self.in_mesh = True
        self.joined: list[float] = []
        self.timers = Timers()
        self.core = Seeds(
            random.Random(1),
            self.timers,
            lambda peer: self.status,
            lambda contact, now: self._join(now),
            lambda: self.in_mesh,
            0.0,
        )
        self.core.add(Contact(PEER.id))

    def _join(self, now: float) -> None:
        self.joined.append(now)

    def run(self, until: float) -> None:
        while (at := self.timers.next_deadline()) is not None and at <= until:
            self.timers.run(at)


def test_a_node_without_neighbours_tries_its_seed_each_time() -> None:
    seeds = _Seeds()
    seeds.run(3600.0)
    assert len(seeds.joined) < 3600 / MAX_SILENT_WAIT_S + 8
    seeds.in_mesh = False
    tried = len(seeds.joined)
    seeds.run(7200.0)
    assert len(seeds.joined) - tried > 3600 / LOOK_S / 1.5


@pytest.mark.parametrize("status", [Status.UNKNOWN, Status.GONE, Status.LEFT])
def test_a_seed_that_does_not_answer_is_tried_ever_more_rarely_until_it_does(status: Status) -> None:
    seeds = _Seeds()
    seeds.status = status
    seeds.run(3600.0)
    waits = [b - a for a, b in pairwise(seeds.joined)]
    assert waits[0] < 3 * LOOK_S
    assert MAX_SILENT_WAIT_S / 2 < waits[-1] < 1.2 * MAX_SILENT_WAIT_S + 2 * LOOK_S
    seeds.status = Status.ALIVE
    seeds.run(3700.0)
    seeds.status, tried = status, len(seeds.joined)
    seeds.run(3700.0 + 1.3 * LOOK_S)
    assert len(seeds.joined) > tried, "at once, for it was known meanwhile"


def test_a_seed_that_did_not_answer_is_tried_at_once_where_this_node_has_moved() -> None:
    stays, moves = _Seeds(), _Seeds()
    for node in (stays, moves):
        node.run(3600.0)
    moves.core.on_moved()
    for node in (stays, moves):
        node.run(3600.0 + 1.3 * LOOK_S)
    assert len(moves.joined) == len(stays.joined) + 1


def test_a_seed_that_was_met_is_tried_ever_more_rarely_up_to_an_hour() -> None:
    met = _Seeds()
    now, met_at = 0.0, -1
    while now < 12 * 3600.0:
        if len(met.joined) > met_at:
            met.core.on_neighbour(PEER.id, now)
            met_at = len(met.joined)
        now += LOOK_S
        met.run(now)
    assert len(met.joined) < 24
    assert met.joined[-1] - met.joined[-2] > MAX_WAIT_S / 2


def test_a_seed_that_is_gone_is_tried_at_once_whenever_it_was_met() -> None:
    seeds = _Seeds()
    for _ in range(10):
        seeds.core.on_neighbour(PEER.id, 0.0)
    seeds.run(200.0)
    assert seeds.joined == []
    seeds.status = Status.GONE
    seeds.run(240.0)
    assert len(seeds.joined) >= 1


def test_a_seed_that_is_known_is_left_alone() -> None:
    seeds = _Seeds()
    seeds.status = Status.ALIVE
    seeds.run(3600.0)
    assert seeds.joined == []
