"""HyParView and Plumtree where many join at once, and where a neighbour names nodes that do not exist."""

from __future__ import annotations

import random

import pytest

from meshnode.base.limits import GOSSIP_MAX_LOST
from meshnode.base.metrics import Metrics
from meshnode.base.timers import Timers
from meshnode.gossip import Gossip
from meshnode.gossip.dissemination.plumtree import EAGER_LINKS, Plumtree
from meshnode.gossip.effects import Connect, Send
from meshnode.gossip.membership.hyparview import (
    ANSWER_S,
    FULL_AGAIN_S,
    FULL_S,
    JOIN_WALKS,
    SLOW_S,
    HyParView,
)
from meshnode.gossip.membership.walk_budget import TOLD_S
from meshnode.gossip.messages import (
    Contact,
    Disconnect,
    ForwardJoin,
    IHave,
    Join,
    Neighbour,
    NeighbourReply,
)
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId


def _id(number: int) -> NodeId:
    return NodeId(number.to_bytes(32, "big"))


def _views(*neighbours: int) -> tuple[HyParView, Timers]:
    timers = Timers()
    views = HyParView(_id(0), random.Random(1), timers, Metrics(), lambda: b"", lambda: [], 0.0)
    for number in neighbours:
        views.on_link(_id(number), 0.0)
        views.on_neighbour(_id(number), Neighbour(True, b""), 0.0)
    views.take_effects()
    return views, timers


def _asked(views: HyParView) -> list[NodeId]:
    """Return the nodes that are dialled, or asked over a link that there is."""
    found: list[NodeId] = []
    for effect in views.take_effects():
        if isinstance(effect, Connect):
            found.append(effect.contact.id)
        elif isinstance(effect, Send) and isinstance(effect.message, Neighbour | Join):
            found.append(effect.peer)
    return found


def _run(views: HyParView, timers: Timers, until: float) -> list[NodeId]:
    asked: list[NodeId] = []
    while (at := timers.next_deadline()) is not None and at <= until:
        timers.run(at)
        asked += _asked(views)
    return asked


def test_walks_to_ids_that_do_not_answer_keep_no_place_from_a_nodes_own_choice() -> None:
    views, timers = _views(1)
    false = iter(range(1_000, 100_000))
    now = 1.0
    dialled: list[NodeId] = []
    while not dialled and now < 20.0:  # one neighbour names all that it may
        for _ in range(12):
            views.on_forward_join(_id(1), ForwardJoin(Contact(_id(next(false)), b"record"), 0), now)
        views.take_effects()
        if now == 1.0:
            assert len(views._pending) == 8
            views.add_contact(Contact(_id(2)), now)
        dialled += [peer for peer in _run(views, timers, now) if peer == _id(2)]
        now += 0.05
    assert now <= 1.0 + SLOW_S + 1.0 < 1.0 + ANSWER_S


def test_a_newcomer_that_answers_in_time_keeps_its_place() -> None:
    views, timers = _views(1)
    views.on_forward_join(_id(1), ForwardJoin(Contact(_id(100), b"record"), 0), 1.0)
    views.on_link(_id(100), 1.1)
    views.take_effects()
    _run(views, timers, 1.9)
    views.on_neighbour_reply(_id(100), NeighbourReply(True), 2.0)
    assert _id(100) in views.active


def test_a_peer_that_takes_this_node_for_its_neighbour_is_told_once_that_it_is_none() -> None:
    rng = random.Random(1)
    gossip = Gossip(Identity(bytes(32)), rng=rng, metrics=Metrics(), now=0.0, wall=1_800_000_000.0)
    gossip.on_link(_id(9), True, 0.0)
    told = []
    for at in (1.0, 1.0, 1.2, 1.5, 1.0 + TOLD_S, 1.1 + TOLD_S):
        gossip.on_message(_id(9), IHave(b"", ()), at)
        told += [at for e in gossip.take_effects() if e == Send(_id(9), Disconnect(False))]
    assert told == [1.0, 1.0 + TOLD_S], "at first, and when that may have been lost"


@pytest.mark.parametrize("how", ["parted", "refused"])
def test_one_that_has_no_room_is_asked_after_all_others_and_not_again_at_once(how: str) -> None:
    """In a crowd all know the seeds alone: each request that one may not refuse pushes out another node, which asks."""
    views, timers = _views()
    views.join(Contact(_id(1)), 0.0)
    views.on_link(_id(1), 0.1)
    views.take_effects()
    views.on_neighbour_reply(_id(1), NeighbourReply(how == "parted"), 0.2)
    if how == "parted":
        views.on_disconnect(_id(1), Disconnect(False), 0.2)
    else:
        views.add_contact(Contact(_id(1)), 0.2)
    assert _id(1) in views.passive
    assert not _run(views, timers, 0.2 + FULL_AGAIN_S - 0.01)
    assert _run(views, timers, 2.5) == [_id(1)], "for there is no other"
    views.on_neighbour_reply(_id(1), NeighbourReply(False), 2.5)
    views.add_contact(Contact(_id(1)), 2.5)
    views.add_contact(Contact(_id(2)), 2.5)
    assert _run(views, timers, 2.5 + FULL_S - 0.1)[0] == _id(2)


def test_a_contact_starts_a_few_walks_for_a_node_that_joins_whatever_its_neighbours() -> None:
    views, _ = _views(*range(1, 8))
    views.on_link(_id(100), 1.0)
    views.on_join(_id(100), Join(b""), 1.0)
    walks = [e.peer for e in views.take_effects() if isinstance(e, Send) and isinstance(e.message, ForwardJoin)]
    assert len(set(walks)) == len(walks) == JOIN_WALKS
    assert _id(100) not in walks


def test_links_beyond_the_first_are_lazy_until_one_of_those_is_missing() -> None:
    tree = Plumtree(random.Random(1), Timers(), Metrics(), 0.0)
    for number in range(1, 9):
        tree.link(_id(number))
    assert list(tree.eager) == [_id(number) for number in range(1, 1 + EAGER_LINKS)]
    for peer in list(tree.eager):
        tree.unlink(peer)
    assert len(tree.eager) == 1, "the place of the last one is taken"


def test_ids_that_were_only_named_push_no_former_neighbour_out_of_those_that_are_tried_again() -> None:
    views, _ = _views(1, 2, 3)
    for number in (2, 3):
        views.lose(_id(number), 1.0)
    for number in range(1_000, 1_000 + 2 * GOSSIP_MAX_LOST):
        views.views.remember(Contact(_id(number), b"record"))
        views.lose(_id(number), 2.0)
    lost = views.views.lost
    assert len(lost) == GOSSIP_MAX_LOST
    assert _id(2) in lost
    assert _id(3) in lost
    assert _id(1_000 + 2 * GOSSIP_MAX_LOST - 1) in lost, "of those that were named the newest stay"
