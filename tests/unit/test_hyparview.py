"""Whose link gives way, and what a neighbour may cause: ``meshnode.gossip.views`` and ``broadcast`` alone."""

from __future__ import annotations

import random

from meshnode.base.metrics import Metrics
from meshnode.base.timers import Timers
from meshnode.gossip.dissemination.plumtree import Plumtree
from meshnode.gossip.effects import Connect, Send
from meshnode.gossip.membership.hyparview import JOIN_WALK, HyParView
from meshnode.gossip.messages import Contact, Eager, ForwardJoin, Graft, Join, Neighbour
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


def test_a_crowd_that_joins_through_us_replaces_one_another_and_not_those_who_were_here() -> None:
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


def test_a_node_looks_for_another_neighbour_often_at_first_and_six_times_an_hour_later() -> None:
    views, timers = _full(_id(8))
    for number in range(100, 120):  # a mesh that is no small one
        views.add_contact(Contact(_id(number), b""), 0.0)
    walks: list[float] = []
    while (now := timers.next_deadline()) is not None and now < 7200:
        timers.run(now)
        for effect in views.take_effects():
            if isinstance(effect, Send) and isinstance(effect.message, ForwardJoin):
                assert effect.message == ForwardJoin(Contact(_id(0), b""), JOIN_WALK)
                walks.append(now)
    assert 5 <= sum(at < 300 for at in walks) <= 12
    assert 5 <= sum(at > 3600 for at in walks) <= 8


def test_in_a_mesh_of_two_dozen_neighbours_stay_once_it_has_formed() -> None:
    views, timers = _full(_id(8))
    while (now := timers.next_deadline()) is not None and now < 3600:
        timers.run(now)
        walks = [e for e in views.take_effects() if isinstance(e, Send) and isinstance(e.message, ForwardJoin)]
        assert now <= 15.0 or not walks


def _tree() -> Plumtree:
    return Plumtree(random.Random(1), Timers(), Metrics(), 0.0)


def test_a_new_link_is_held_in_reserve_where_a_tree_has_grown() -> None:
    tree = _tree()
    tree.link(_id(1))
    tree.link(_id(2))
    assert list(tree.eager) == [_id(1), _id(2)]  # nobody knows yet who is superfluous
    tree.on_prune(_id(2), 1.0)
    tree.link(_id(3))
    assert list(tree.eager) == [_id(1)]
    assert _id(3) in tree.lazy


def test_the_place_of_the_last_eager_link_is_taken_at_once() -> None:
    tree = _tree()
    tree.link(_id(1))
    tree.link(_id(2))
    tree.on_prune(_id(2), 1.0)
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
