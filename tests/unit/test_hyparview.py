"""Whose link gives way, and what a neighbour may cause: HyParView and Plumtree alone."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from meshnode.base.limits import GOSSIP_FRAME, GOSSIP_MAX_PASSIVE
from meshnode.base.metrics import Metrics
from meshnode.base.timers import Timers
from meshnode.gossip.dissemination.plumtree import Plumtree, frames
from meshnode.gossip.effects import Connect, NeedContacts, Send
from meshnode.gossip.membership.hyparview import JOIN_WALK, HyParView
from meshnode.gossip.messages import (
    Contact,
    Disconnect,
    Eager,
    ForwardJoin,
    Graft,
    IHave,
    Join,
    Neighbour,
    NeighbourReply,
    Prune,
    Shuffle,
    ShuffleReply,
)
from meshnode.identity.node_id import NodeId


def _id(number: int) -> NodeId:
    return NodeId(number.to_bytes(32, "big"))


def _full(*spare: NodeId) -> tuple[HyParView, Timers]:
    timers = Timers()
    views = HyParView(_id(0), random.Random(1), timers, Metrics(), lambda: b"", lambda: list(spare), 0.0)
    for number in range(1, 9):
        views.on_link(_id(number), 0.0)
        views.on_neighbour(_id(number), Neighbour(True, b""), 0.0)
    views.take_effects()
    return views, timers


def test_a_crowd_that_joins_through_us_replaces_one_another_and_not_those_that_were_here() -> None:
    views, _ = _full(_id(8))
    for number in range(100, 200):
        views.on_link(_id(number), 1.0)
        views.on_join(_id(number), Join(b""), 1.0)
    assert [_id(number) in views.active for number in range(1, 8)] == [True] * 7
    assert _id(199) in views.active
    assert len(views.active) == 8


def test_a_link_that_the_tree_does_not_use_gives_way_first() -> None:
    views, _ = _full(_id(4))
    views.on_link(_id(100), 1.0)
    views.on_neighbour(_id(100), Neighbour(True, b""), 1.0)
    assert _id(4) not in views.active
    assert _id(100) in views.active


def test_where_a_walk_ends_the_newcomer_becomes_a_neighbour_even_of_a_full_node() -> None:
    views, _ = _full(_id(8))
    views.on_forward_join(_id(1), ForwardJoin(Contact(_id(100), b"record"), 0), 1.0)
    assert views.take_effects() == [Connect(Contact(_id(100), b"record"))]
    views.on_link(_id(100), 1.1)
    assert views.take_effects() == [Send(_id(100), Neighbour(True, b""))]


def _answer(views: HyParView, peer: NodeId, *, high: bool) -> bool:
    """Whether a request of this node to be a neighbour is accepted."""
    views.on_neighbour(peer, Neighbour(high, b""), 1.0)
    (reply,) = [
        e.message for e in views.take_effects() if isinstance(e, Send) and isinstance(e.message, NeighbourReply)
    ]
    return reply.accepted


def test_a_node_with_all_neighbours_refuses_one_more_unless_that_lacks_them() -> None:
    views, _ = _full(_id(4))
    views.on_link(_id(100), 1.0)
    assert not _answer(views, _id(100), high=False)
    assert _id(100) not in views.active
    assert _answer(views, _id(1), high=False), "it is one already"
    assert _answer(views, _id(100), high=True)
    assert len(views.active) == 8


def test_a_link_that_others_opened_is_thought_of_as_a_neighbour_only_where_one_is_missing() -> None:
    views, timers = _full()
    views.on_link(_id(100), 1.0)
    assert _id(100) not in views.passive
    for number in (1, 2, 3):
        views.on_disconnect(_id(number), Disconnect(True), 1.0)
    views.on_link(_id(101), 1.0)
    assert _id(101) in views.passive
    timers.run(1.5)
    sent = [(e.peer, e.message) for e in views.take_effects() if isinstance(e, Send)]
    assert (_id(101), Neighbour(False, b"")) in sent
    views.leave(2.0)
    views.on_link(_id(102), 2.0)
    assert _id(102) not in views.passive, "a node that leaves asks for nothing"


def test_a_node_that_finds_no_neighbour_asks_again_in_pauses_that_grow_to_ten_seconds() -> None:
    timers = Timers()
    views = HyParView(_id(0), random.Random(1), timers, Metrics(), lambda: b"", lambda: [], 0.0)
    asked: list[float] = []
    while (now := timers.next_deadline()) is not None and now < 400:
        timers.run(now)
        asked += [now for effect in views.take_effects() if isinstance(effect, NeedContacts)]
    waits = [later - earlier for earlier, later in pairwise(asked)]
    assert all(wait < 13.1 for wait in waits)
    assert 400 / 13 < len(asked) < 120, "each shuffle asks too"


def test_a_neighbour_causes_four_dials_a_second_and_no_more() -> None:
    views, _ = _full(_id(8))
    dials, now = 0, 0.0
    for number in range(4_000):  # 200 a second
        now += 0.005
        views.on_forward_join(_id(1), ForwardJoin(Contact(_id(1_000 + number), b"x"), 0), now)
        for effect in views.take_effects():
            if isinstance(effect, Connect):
                dials += 1
                views.on_link(effect.contact.id, now)
                views._pending.clear()  # as if answered at once: nothing else holds it back
    assert dials <= 16 + 4 * 20


def test_a_node_looks_for_another_neighbour_often_at_first_and_once_an_hour_later() -> None:
    views, timers = _full(_id(8))
    for number in range(100, 120):  # a mesh that is no small one
        views.add_contact(Contact(_id(number), b""), 0.0)
    walks: list[float] = []
    while (now := timers.next_deadline()) is not None and now < 7 * 3600:
        timers.run(now)
        for effect in views.take_effects():
            if isinstance(effect, Send) and isinstance(effect.message, ForwardJoin):
                assert effect.message == ForwardJoin(Contact(_id(0), b""), JOIN_WALK)
                walks.append(now)
    assert 4 <= sum(at < 300 for at in walks) <= 8
    assert 1 <= sum(300 < at < 3600 for at in walks) <= 5
    assert 5 <= sum(at > 3600 for at in walks) <= 8


def test_in_a_mesh_of_two_dozen_neighbours_stay_once_it_has_formed() -> None:
    views, timers = _full(_id(8))
    while (now := timers.next_deadline()) is not None and now < 3600:
        timers.run(now)
        walks = [e for e in views.take_effects() if isinstance(e, Send) and isinstance(e.message, ForwardJoin)]
        assert now <= 15.0 or not walks


def _contacts(first: int, count: int) -> tuple[Contact, ...]:
    return tuple(Contact(_id(number), b"record") for number in range(first, first + count))


def test_contacts_that_a_shuffle_brings_replace_those_that_were_sent_for_them() -> None:
    """So that of two nodes that shuffle both keep what the other gave away, and no contact gets lost (section 4.4)."""
    views, timers = _full()
    for contact in _contacts(100, GOSSIP_MAX_PASSIVE):
        views.add_contact(contact, 0.0)
    before = set(views.passive)
    assert len(before) == GOSSIP_MAX_PASSIVE
    sent: list[Send] = []
    while not sent:
        timers.run(timers.next_deadline() or 0.0)
        sent = [e for e in views.take_effects() if isinstance(e, Send) and isinstance(e.message, Shuffle)]
    peer, shuffle = sent[0].peer, sent[0].message
    assert isinstance(shuffle, Shuffle)
    given = {contact.id for contact in shuffle.contacts} & before
    assert len(given) == 4
    fresh = _contacts(500, 4)
    views.shuffles.on_shuffle_reply(peer, ShuffleReply(shuffle.tx, fresh), 11.0)
    assert set(views.passive) == before - given | {contact.id for contact in fresh}


def test_contacts_of_a_shuffle_that_ends_here_replace_those_that_answer_it() -> None:
    views, _ = _full()
    for contact in _contacts(100, GOSSIP_MAX_PASSIVE):
        views.add_contact(contact, 0.0)
    before = set(views.passive)
    views.take_effects()
    fresh = _contacts(500, 5)
    views.shuffles.on_shuffle(_id(1), Shuffle(7, 0, fresh), 1.0)
    (answer,) = views.take_effects()
    assert isinstance(answer, Send)
    assert isinstance(answer.message, ShuffleReply)
    assert (answer.peer, answer.message.tx) == (_id(1), 7)
    given = {contact.id for contact in answer.message.contacts}
    assert len(given) == 5
    assert set(views.passive) == before - given | {contact.id for contact in fresh}


def test_a_node_that_knows_its_neighbours_only_answers_a_shuffle_with_those() -> None:
    """All of a small mesh are neighbours of one another but for a node with few, which learns of no other else."""
    views, _ = _full()
    assert not views.passive
    views.take_effects()
    views.shuffles.on_shuffle(_id(1), Shuffle(7, 0, _contacts(500, 3)), 1.0)
    (answer,) = views.take_effects()
    assert isinstance(answer, Send)
    assert isinstance(answer.message, ShuffleReply)
    assert len({contact.id for contact in answer.message.contacts} & set(views.active)) == 3


def test_a_shuffle_reply_that_was_not_asked_for_teaches_nothing() -> None:
    views, _ = _full()
    views.shuffles.on_shuffle_reply(_id(1), ShuffleReply(7, _contacts(500, 4)), 1.0)
    assert not views.passive
    assert not views.take_effects()


def _tree() -> Plumtree:
    return Plumtree(random.Random(1), Timers(), Metrics(), 0.0)


def test_a_new_link_is_held_in_reserve_where_a_tree_has_grown() -> None:
    tree = _tree()
    tree.link(_id(1))
    tree.link(_id(2))
    assert list(tree.eager) == [_id(1), _id(2)]  # it is not known yet which one is superfluous
    tree.on_prune(_id(2), Prune(b""), 1.0)
    tree.link(_id(3))
    assert list(tree.eager) == [_id(1)]
    assert _id(3) in tree.lazy


def test_the_place_of_the_last_eager_link_is_taken_at_once() -> None:
    tree = _tree()
    tree.link(_id(1))
    tree.link(_id(2))
    tree.on_prune(_id(2), Prune(b""), 1.0)
    tree.take_effects()
    tree.unlink(_id(1))
    assert list(tree.eager) == [_id(2)]
    assert tree.take_effects() == [Send(_id(2), Graft(b"", ()))]


def test_a_payload_that_reconciliation_brought_first_still_goes_its_way_and_cuts_no_link() -> None:
    tree = _tree()
    tree.link(_id(1))
    tree.link(_id(2))
    tree.take_effects()
    tree.announce(b"item", b"payload", _id(3), 1.0)
    assert tree.on_overtaken(_id(1), b"item", 4, 1.1)
    assert tree.take_effects() == [Send(_id(2), Eager(b"", ((5, b"payload"),)))]
    assert list(tree.eager) == [_id(1), _id(2)]
    assert not tree.on_overtaken(_id(2), b"item", 4, 1.2)  # from now on it is a duplicate like any other


def test_a_payload_does_not_go_back_where_it_came_from_whichever_object_names_that_neighbour() -> None:
    tree = _tree()
    tree.link(_id(1))
    tree.link(_id(2))
    tree.take_effects()
    tree.on_payload(_id(1), b"item", b"payload", 0, 1.0)
    assert [effect.peer for effect in tree.take_effects()] == [_id(2)]


def test_a_payload_that_reconciliation_brought_first_goes_on_along_the_tree_and_its_link_stays() -> None:
    tree = _tree()
    for number in (1, 2, 3):
        tree.add(_id(number))
    tree.announce(b"payload1", b"bytes", _id(3), 1.0)
    tree.take_effects()
    assert tree.on_overtaken(_id(1), b"payload1", 2, 1.1)
    assert [effect.peer for effect in tree.take_effects() if isinstance(effect.message, Eager)] == [_id(2), _id(3)]
    assert _id(1) in tree.eager
    assert not tree.on_overtaken(_id(2), b"payload1", 2, 1.2), "once: what comes later is a duplicate"


@pytest.mark.parametrize(("announced", "came", "swaps"), [(2, 5, True), (5, 5, True), (6, 5, False), (9, 5, False)])
def test_a_shorter_way_that_was_announced_replaces_the_longer_one(announced: int, came: int, swaps: bool) -> None:
    """Plumtree section 3.8: the eager link gives way to the lazy one whose announcement named fewer hops."""
    tree = _tree()
    near, far = _id(1), _id(2)
    tree.link(near)
    tree.link(far)
    tree.on_prune(near, Prune(b""), 1.0)
    tree.take_effects()
    tree.on_ihave(near, IHave(b"", ((announced, b"item"),)), 1.1)
    tree.on_payload(far, b"item", b"payload", came, 1.2)
    sent = [(effect.peer, effect.message) for effect in tree.take_effects()]
    assert sent == ([(near, Graft(b"", ())), (far, Prune(b""))] if swaps else [])
    assert list(tree.eager) == [near if swaps else far]
    assert list(tree.lazy) == [far if swaps else near]


def test_links_are_not_swapped_for_one_that_has_gone_meanwhile() -> None:
    tree = _tree()
    for number in (1, 2):
        tree.link(_id(number))
    tree.on_prune(_id(1), Prune(b""), 1.0)
    tree.on_ihave(_id(1), IHave(b"", ((0, b"item"),)), 1.1)
    tree.unlink(_id(1))
    tree.take_effects()
    tree.on_payload(_id(2), b"item", b"payload", 5, 1.2)
    assert tree.take_effects() == []
    assert list(tree.eager) == [_id(2)]


def test_a_lazy_link_that_brings_a_new_payload_becomes_eager_unless_all_links_bring_it() -> None:
    tree = _tree()
    for number in (1, 2):
        tree.link(_id(number))
    tree.on_prune(_id(2), Prune(b""), 1.0)
    tree.on_payload(_id(2), b"one", b"payload", 0, 1.1, takes_link=False)
    assert _id(2) in tree.lazy
    tree.on_payload(_id(2), b"two", b"payload", 0, 1.2)
    assert list(tree.eager) == [_id(1), _id(2)]
    assert not tree.lazy


def test_a_payload_that_only_the_store_still_has_is_served_as_one_of_this_node() -> None:
    older = {b"older": b"from the store"}
    tree = Plumtree(random.Random(1), Timers(), Metrics(), 0.0, find=older.get)
    tree.add(_id(1))
    tree.on_payload(_id(2), b"newer", b"payload", 3, 1.0)
    tree.take_effects()
    tree.on_graft(_id(1), Graft(b"", (b"older", b"newer", b"none")), 1.1)
    assert tree.take_effects() == [Send(_id(1), Eager(b"", ((0, b"from the store"), (4, b"payload"))))]


def test_payloads_for_a_neighbour_share_messages_that_fit_a_frame_in_their_order() -> None:
    items = [(number, bytes(size)) for number, size in enumerate([5_000] * 5 + [GOSSIP_FRAME + 1] + [10] * 50)]
    cut = frames(items)
    assert [item for part in cut for item in part] == items
    assert [len(part) for part in cut] == [2, 2, 1, 1, 50]


def _asks(views: HyParView, peer: NodeId) -> None:
    views.on_link(peer, 1.0)
    assert _answer(views, peer, high=True)


def test_a_crowd_of_ids_that_asks_without_end_never_has_the_neighbours_that_a_node_chose() -> None:
    views = HyParView(_id(0), random.Random(1), Timers(), Metrics(), lambda: b"", lambda: [], 0.0)
    for number in (1, 2, 3, 4):
        views.join(Contact(_id(number), b"record"), 0.0)
        views.on_link(_id(number), 0.1)
        views.on_neighbour_reply(_id(number), NeighbourReply(True), 0.2)
    views.take_effects()
    for number in range(100, 1_100):
        _asks(views, _id(number))
        views.on_join(_id(number), Join(b""), 1.0)
        views.take_effects()
    assert sum(_id(number) in views.active for number in (1, 2, 3, 4)) >= 3
    assert len(views.active) == 8


def test_many_ids_of_one_network_push_out_one_another_once_they_have_most_places() -> None:
    home = {_id(number): number for number in range(1, 9)}
    timers = Timers()
    networks = (lambda peer: home.get(peer, "crowd"),)
    views = HyParView(_id(0), random.Random(1), timers, Metrics(), lambda: b"", lambda: [], 0.0, *networks)
    for number in range(1, 9):
        _asks(views, _id(number))
    for number in range(100, 1_100):
        _asks(views, _id(number))
    assert sum(peer in home for peer in views.active) >= 6


def test_shuffles_carry_ids_and_grow_rare_while_the_neighbours_are_the_same() -> None:
    timers = Timers()
    views = HyParView(_id(0), random.Random(1), timers, Metrics(), lambda: b"own", lambda: [], 0.0)
    for number in range(1, 7):
        views.on_link(_id(number), 0.0)
        views.on_neighbour(_id(number), Neighbour(True, b"record"), 0.0)
    views.take_effects()
    shuffles: list[tuple[float, Shuffle]] = []

    def run(until: float) -> int:
        before = len(shuffles)
        while (at := timers.next_deadline()) is not None and at <= until:
            timers.run(at)
            shuffles.extend(
                (at, e.message) for e in views.take_effects() if isinstance(e, Send) and isinstance(e.message, Shuffle)
            )
        return len(shuffles) - before

    assert run(60.0) >= 2
    assert run(660.0) <= 5
    assert 2 <= run(660.0 + 3 * 1_536) <= 6
    assert all(contact.record == b"" for _, shuffle in shuffles for contact in shuffle.contacts)
    views.forget(_id(1), 5_268.0)
    assert 1 <= run(5_283.0) <= 2, "a change is passed on"


def _asked_of_full_nodes(neighbours: int, seconds: float) -> list[float]:
    """When a node with so many neighbours asks others, each of which refuses."""
    timers = Timers()
    views = HyParView(_id(0), random.Random(1), timers, Metrics(), lambda: b"", lambda: [], 0.0)
    for number in range(1, 1 + neighbours):
        views.on_link(_id(number), 0.0)
        views.on_neighbour(_id(number), Neighbour(True, b""), 0.0)
    for number in range(20, 26):
        views.add_contact(Contact(_id(number), b""), 0.0)
    asked: list[float] = []
    while (now := timers.next_deadline()) is not None and now < seconds:
        timers.run(now)
        for effect in views.take_effects():
            if isinstance(effect, Connect):
                views.on_link(effect.contact.id, now)
                views.on_neighbour_reply(effect.contact.id, NeighbourReply(False), now)
                views.on_unlink(effect.contact.id, now)
                asked.append(now)
    return asked


def test_a_node_whose_requests_are_all_refused_asks_ever_more_rarely_unless_it_has_almost_no_neighbours() -> None:
    few = _asked_of_full_nodes(4, 4 * 3600.0)
    assert sum(at < 60 for at in few) >= 6, "often at first"
    assert sum(at > 3600 for at in few) <= 3 * 2 * 3600 / 800
    assert sum(at > 3600 for at in few) >= 6, "and never stops: places become free"
    urgent = _asked_of_full_nodes(2, 3600.0)
    assert sum(at > 600 for at in urgent) > 3000 / 13, "with so few others may not refuse it"


@pytest.mark.parametrize("known", [0, 1, 2], ids=["itself", "a neighbour", "a known node"])
def test_a_node_that_is_told_only_of_what_it_knows_does_not_ask_again_at_once(known: int) -> None:
    timers = Timers()
    views = HyParView(_id(0), random.Random(1), timers, Metrics(), lambda: b"", lambda: [], 0.0)
    views.on_link(_id(1), 0.0)
    views.on_neighbour(_id(1), Neighbour(True, b""), 0.0)
    if known == 2:
        views.add_contact(Contact(_id(2)), 0.0)
    asked: list[float] = []
    while (now := timers.next_deadline()) is not None and now < 60 and len(asked) < 100:
        timers.run(now)
        for effect in views.take_effects():
            if isinstance(effect, NeedContacts | Connect):
                asked.append(now)
                views.add_contact(Contact(_id(known)), now)
    assert 4 <= len(asked) <= 20


def _few(*neighbours: int) -> tuple[HyParView, Timers]:
    timers = Timers()
    views = HyParView(_id(0), random.Random(1), timers, Metrics(), lambda: b"", lambda: [], 0.0)
    for number in neighbours:
        views.on_link(_id(number), 0.0)
        views.on_neighbour(_id(number), Neighbour(True, b""), 0.0)
    views.take_effects()
    return views, timers


def test_where_a_shuffle_ends_at_a_node_that_knows_only_its_neighbours_it_tells_of_them() -> None:
    views, _ = _few(1, 2, 3)
    views.shuffles.on_shuffle(_id(1), Shuffle(7, 0, (Contact(_id(9)), Contact(_id(1)))), 1.0)
    (sent,) = views.take_effects()
    assert isinstance(sent, Send)
    assert isinstance(sent.message, ShuffleReply)
    told = {contact.id for contact in sent.message.contacts}
    assert len(told) == 2
    assert told <= {_id(1), _id(2), _id(3)}


def test_a_node_that_knows_only_its_neighbours_takes_the_ids_of_a_shuffle_that_it_passes_on() -> None:
    views, _ = _few(1, 2)
    contacts = (Contact(_id(9)), Contact(_id(1)), Contact(_id(2)))
    views.shuffles.on_shuffle(_id(1), Shuffle(7, 3, contacts), 1.0)
    assert views.take_effects() == [Send(_id(2), Shuffle(7, 2, contacts))]
    assert list(views.passive) == [_id(9)]
    views.shuffles.on_shuffle(_id(1), Shuffle(8, 3, (Contact(_id(10)),)), 1.0)
    assert list(views.passive) == [_id(9)], "that is what walks' ends are for"


def test_a_node_that_loses_all_but_two_neighbours_shuffles_soon_however_long_nothing_had_changed() -> None:
    views, timers = _few(1, 2, 3)
    shuffled: list[float] = []

    def run(until: float) -> None:
        while (now := timers.next_deadline()) is not None and now < until:
            timers.run(now)
            shuffled.extend(now for e in views.take_effects() if isinstance(e, Send) and isinstance(e.message, Shuffle))

    run(5_000.0)
    views.on_disconnect(_id(3), Disconnect(True), 5_000.0)
    shuffled.clear()
    run(5_100.0)
    assert [at < 5_013 for at in shuffled] == [True, False, False]
