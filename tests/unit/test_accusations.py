"""What a node does about entries that speak of it, or were signed with its key by another process."""

from __future__ import annotations

import random

import pytest

from meshnode.base.limits import GOSSIP_MAX_SUSPECTS
from meshnode.base.metrics import Metrics
from meshnode.base.timers import Timers
from meshnode.gossip import Changed, Entry, Gossip, Kind, MemberChanged, Status
from meshnode.gossip.dissemination.entry_store import EntryStore, Put
from meshnode.gossip.effects import Send
from meshnode.gossip.entry import sign_entry
from meshnode.gossip.kinds import Accusation, Member, parse_member
from meshnode.gossip.membership import members
from meshnode.gossip.membership.members import MAX_EXCUSED, WAIT_S, Members
from meshnode.gossip.messages import Eager, Entries, Neighbour, Prune
from meshnode.gossip.wiring import listed_members
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId

WALL = 1_800_000_000.0
BASE = int(WALL * 1000)
ME, PEER, OTHER, THIRD = (Identity(bytes(31) + bytes([n])) for n in (1, 2, 3, 4))


def _node(first_seq: int = 0) -> Gossip:
    gossip = Gossip(ME, rng=random.Random(1), metrics=Metrics(), now=0.0, wall=WALL, first_seq=first_seq, listed=True)
    gossip.on_link(PEER.id, True, 0.0)
    gossip.on_message(PEER.id, Neighbour(True, b""), 0.0)
    gossip.take_effects()
    return gossip


def _entry(signer: Identity, kind: int, name: str, seq: int, value: bytes | None, ttl: int = 3600) -> Entry:
    return sign_entry(signer, kind=kind, name=name, seq=BASE + seq, issued_ms=BASE, ttl=ttl, value=value)


def _member(signer: Identity, seq: int, left: bool = False, ttl: int = 7200) -> Entry:
    return _entry(signer, Kind.MEMBER, "", seq, Member(left, b"").encoded(), ttl)


def _own(gossip: Gossip) -> list[Entry]:
    return [e.entry for e in gossip.take_effects() if isinstance(e, Changed) and e.entry.origin == ME.id]


def test_an_accusation_that_was_refuted_leaves_its_seq_behind() -> None:
    gossip = _node()
    accused = Accusation(OTHER.id, BASE).encoded()
    first, refutation = _entry(PEER, Kind.ACCUSATION, str(OTHER.id), 50, accused), _member(OTHER, 60)
    later = _entry(PEER, Kind.ACCUSATION, str(OTHER.id), 40, Accusation(OTHER.id, BASE + 40).encoded())
    for entry in (first, refutation):
        gossip.on_message(PEER.id, Eager(b"", ((0, entry.encoded),)), 0.0)
    assert gossip.store.get(first.key) is None
    assert gossip.store.judge(later) is Put.STALE
    assert gossip.status(OTHER.id) is Status.ALIVE


def test_a_node_is_back_before_what_it_offers_is() -> None:
    gossip = _node()
    entries = [_member(OTHER, 60), _entry(OTHER, Kind.SERVICE, "db", 61, b"x")]
    gossip.on_message(PEER.id, Entries(False, tuple(entry.encoded for entry in entries)), 0.0)
    told = [e for e in gossip.take_effects() if isinstance(e, Changed | MemberChanged)]
    news = MemberChanged(OTHER.id, Status.ALIVE, Status.UNKNOWN)
    assert [e.entry if isinstance(e, Changed) else e for e in told] == [news, *entries]


def test_a_dropped_entry_does_not_come_back_nor_an_older_one() -> None:
    store = EntryStore(Metrics())
    entry, older = _entry(PEER, 8, "db", 5, b"x"), _entry(PEER, 8, "db", 4, b"y")
    store.put(entry)
    store.drop(entry)
    assert [store.put(entry), store.put(older)] == [Put.STALE, Put.STALE]


def test_an_accusation_of_ours_that_was_refuted_and_comes_back_is_not_answered() -> None:
    gossip = _node()
    gossip.on_message(PEER.id, Eager(b"", ((0, _member(OTHER, 0).encoded),)), 0.0)
    gossip.accusations.accuse(OTHER.id, 0.0)
    gossip.tick(0.0, WALL)
    (accusation,) = _own(gossip)
    gossip.on_message(PEER.id, Eager(b"", ((0, _member(OTHER, 60).encoded),)), 0.1)
    gossip.on_message(PEER.id, Entries(True, (accusation.encoded,)), 0.2)
    assert _own(gossip) == [], "a withdrawn accusation is none, and would be blamed on us"


def test_whatever_we_publish_as_an_answer_is_what_its_kind_demands() -> None:
    gossip = _node()
    gossip.announce(b"", 0.0)
    gossip.store.drop(gossip.store.get((ME.id, Kind.MEMBER, "")))  # type: ignore[arg-type]
    gossip.on_message(PEER.id, Entries(True, (_member(ME, -5, left=True, ttl=86_400).encoded,)), 0.2)
    answers = _own(gossip)
    assert [parse_member(entry) for entry in answers if entry.kind == Kind.MEMBER][-1] == Member(False, b"")
    assert None not in [parse_member(entry) for entry in answers]


def test_a_goodbye_said_with_our_key_is_refuted_even_when_we_count_higher_already() -> None:
    gossip = _node()
    gossip.announce(b"", 0.0)
    gossip.own_entries.rise_above(BASE + 500)  # we have published other things since
    gossip.take_effects()
    bye = _member(ME, 100, left=True, ttl=86_400)
    gossip.on_message(PEER.id, Eager(b"", ((0, bye.encoded),)), 1.0)
    own = gossip.store.get((ME.id, Kind.MEMBER, ""))
    assert own is not None
    assert own.seq > bye.seq
    assert parse_member(own) == Member(False, b"")


def test_of_those_that_said_goodbye_so_many_are_remembered() -> None:
    members = Members(ME.id, Timers(), Metrics(), lambda: 1.0)
    for number in range(GOSSIP_MAX_SUSPECTS + 20):
        members.on_member(NodeId(number.to_bytes(32, "big")), BASE, True, 0.0, news=True)
    assert len(members._left) == GOSSIP_MAX_SUSPECTS
    assert members.status(NodeId((GOSSIP_MAX_SUSPECTS + 19).to_bytes(32, "big"))) is Status.LEFT


def test_accusations_of_invented_ids_take_no_place_of_a_member_that_this_node_knows() -> None:
    members = Members(ME.id, Timers(), Metrics(), lambda: 1.0, lambda peer: peer == PEER.id)
    for number in range(GOSSIP_MAX_SUSPECTS + 20):
        for accuser in (OTHER, THIRD):
            members.on_accused(NodeId(number.to_bytes(32, "big")), accuser.id, BASE, 0.0)
    assert len(members.suspects()) == GOSSIP_MAX_SUSPECTS
    members.on_accused(PEER.id, OTHER.id, BASE, 1.0)
    assert members.status(PEER.id) is Status.SUSPECT
    assert len(members.suspects()) == GOSSIP_MAX_SUSPECTS
    members.on_accused(NodeId((5_000).to_bytes(32, "big")), OTHER.id, BASE, 2.0)
    assert members.status(PEER.id) is Status.SUSPECT, "and it keeps it"


def test_a_neighbour_that_accuses_ever_new_ids_takes_no_place_of_what_others_bring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(members, "GOSSIP_MAX_SUSPECTS", 16)
    gossip = _node()
    gossip.on_link(OTHER.id, True, 0.0)
    gossip.on_message(OTHER.id, Neighbour(True, b""), 0.0)

    def accuse(link: Identity, accuser: Identity, accused: NodeId) -> None:
        accusation = _entry(accuser, Kind.ACCUSATION, str(accused), 1, Accusation(accused, BASE).encoded())
        gossip.on_message(link.id, Eager(b"", ((0, accusation.encoded),)), 0.0)

    crowd = [Identity(bytes([9]) * 31 + bytes([number])) for number in range(2)]
    for number in range(40):
        for accuser in crowd:
            accuse(PEER, accuser, NodeId(bytes([7]) * 31 + bytes([number])))
    assert len(gossip.members.suspects()) == 16
    accused = Identity(bytes(32)).id
    for accuser in (THIRD, OTHER):
        accuse(OTHER, accuser, accused)
    for tenth in range(50):
        gossip.tick(tenth / 10, WALL + tenth / 10)
    assert gossip.status(accused) is Status.GONE
    assert len(gossip.members.suspects()) == 16


def _members() -> tuple[Members, Timers]:
    timers = Timers()
    return Members(ME.id, timers, Metrics(), lambda: 1.0), timers


def test_a_member_that_has_said_goodbye_cannot_be_accused() -> None:
    members, timers = _members()
    members.on_member(PEER.id, BASE, True, 0.0, news=True)
    members.take_effects()
    for accuser in (ME, OTHER):
        members.on_accused(PEER.id, accuser.id, BASE, 1.0)
    assert members.status(PEER.id) is Status.LEFT
    assert members.accusers(PEER.id) == 0
    timers.run(10_000.0)
    assert members.take_effects() == [], "its end was announced once, by itself"


def test_a_member_that_has_come_back_can_be_accused_like_any_other() -> None:
    members, timers = _members()
    members.on_member(PEER.id, BASE, True, 0.0, news=True)
    members.on_member(PEER.id, BASE + 1, False, 1.0, news=False)
    members.take_effects()
    for accuser in (ME, OTHER):
        members.on_accused(PEER.id, accuser.id, BASE + 1, 2.0)
    timers.run(4.1)
    assert [(each.status, each.before) for each in members.take_effects()] == [
        (Status.SUSPECT, Status.ALIVE),
        (Status.GONE, Status.SUSPECT),
    ]


def test_a_node_takes_no_accusation_of_itself_for_true() -> None:
    members, _ = _members()
    members.on_accused(ME.id, PEER.id, BASE, 1.0)
    assert members.status(ME.id) is Status.ALIVE
    assert members.suspects() == []


@pytest.mark.parametrize(
    ("accusers", "gone_after"), [((OTHER,), None), ((ME,), 4.0), ((OTHER, THIRD), 2.0), ((OTHER, THIRD, ME), 1.5)]
)
def test_a_member_is_gone_when_two_accuse_it_or_we_do_and_the_sooner_the_more_they_are(
    accusers: tuple[Identity, ...], gone_after: float | None
) -> None:
    members, timers = _members()
    members.on_member(PEER.id, BASE, False, 0.0, news=True)
    for accuser in accusers:
        members.on_accused(PEER.id, accuser.id, BASE, 0.0)
    members.take_effects()
    timers.run((gone_after or 4.0) - 0.01)
    assert members.status(PEER.id) is Status.SUSPECT
    timers.run((gone_after or 4.0) + 0.01)
    assert members.is_gone(PEER.id) is (gone_after is not None)
    timers.run(8.1)
    assert members.status(PEER.id) is (Status.GONE if gone_after else Status.ALIVE), "a lone accuser was wrong, or lied"


def test_a_process_that_was_held_up_waits_again_for_a_refutation_that_may_lie_unread() -> None:
    members, timers = _members()
    members.on_member(PEER.id, BASE, False, 0.0, news=True)
    members.on_accused(PEER.id, ME.id, BASE, 0.0)
    now = 0.0
    for _ in range(MAX_EXCUSED):
        now += WAIT_S[0] + 0.3
        timers.run(now)
        assert members.status(PEER.id) is Status.SUSPECT
    timers.run(now + WAIT_S[0] + 0.3)
    assert members.is_gone(PEER.id), "one that is always late believes it in the end"


def test_a_refutation_clears_what_was_said_of_older_incarnations_only() -> None:
    members, timers = _members()
    members.on_member(PEER.id, BASE, False, 0.0, news=True)
    members.on_accused(PEER.id, ME.id, BASE, 0.0)
    members.on_accused(PEER.id, OTHER.id, BASE + 5, 0.0)
    members.on_member(PEER.id, BASE + 5, False, 1.0, news=False)
    assert (members.status(PEER.id), members.accusers(PEER.id)) == (Status.SUSPECT, 1)
    members.on_member(PEER.id, BASE + 6, False, 1.1, news=False)
    assert (members.status(PEER.id), members.accusers(PEER.id)) == (Status.ALIVE, 0)
    timers.run(100.0)
    assert members.status(PEER.id) is Status.ALIVE


@pytest.mark.parametrize(("seq", "void"), [(-1, True), (0, False), (1, False)])
def test_an_accusation_is_void_only_when_a_newer_member_entry_is_here(seq: int, void: bool) -> None:
    """What is said of the incarnation that we know is to be heard: that one has said nothing since."""
    gossip = _node()
    gossip.on_message(PEER.id, Eager(b"", ((0, _member(OTHER, 0).encoded),)), 0.0)
    accusation = _entry(PEER, Kind.ACCUSATION, str(OTHER.id), 10, Accusation(OTHER.id, BASE + seq).encoded())
    gossip.on_message(PEER.id, Eager(b"", ((0, accusation.encoded),)), 0.1)
    assert gossip.status(OTHER.id) is (Status.ALIVE if void else Status.SUSPECT)
    assert (gossip.store.get(accusation.key) is None) is void


def test_a_change_of_a_member_comes_before_what_one_message_brought_ahead_of_it() -> None:
    gossip = object.__new__(Gossip)
    peer = Identity(bytes(32)).id
    other, back = Send(peer, Prune(b"")), MemberChanged(peer, Status.ALIVE, Status.GONE)
    gossip._effects = [other, back, other]
    assert gossip.take_effects() == [back, other, other]


def test_a_node_that_alone_took_another_for_gone_believes_it_alive_when_it_hears_it() -> None:
    timers = Timers()
    members = Members(ME.id, timers, Metrics(), lambda: 1.0)
    peer = NodeId(bytes(31) + b"\x07")
    members.on_accused(peer, ME.id, 9, 10.0)  # of an incarnation, but its accusation never left this node
    timers.run(14.1)
    assert members.is_gone(peer)
    members.on_heard(peer)
    assert members.status(peer) is Status.ALIVE


def test_a_crowd_that_says_goodbye_brings_no_member_back_that_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "GOSSIP_MAX_SUSPECTS", 4)
    gossip = _node()
    for signer in (OTHER, *(Identity(bytes([n]) * 32) for n in range(50, 60))):
        gossip.on_message(PEER.id, Eager(b"", ((0, _member(signer, 5, left=True).encoded),)), 0.0)
        assert gossip.status(signer.id) is Status.LEFT
    assert gossip.status(OTHER.id) is Status.LEFT
    assert [each.id for each in listed_members(gossip, lambda peer: False)] in ([ME.id], [])
    gossip.on_message(PEER.id, Eager(b"", ((0, _member(OTHER, 6).encoded),)), 0.1)
    assert gossip.status(OTHER.id) is Status.ALIVE
