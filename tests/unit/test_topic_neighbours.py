"""Neighbours of a topic: when members that did not answer are chosen again."""

from __future__ import annotations

import random

from meshnode.base.metrics import Metrics
from meshnode.gossip.effects import Status
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.topics.context import TopicContext
from meshnode.topics.neighbours import Neighbours
from meshnode.topics.overlay import scope_of

SCOPE = scope_of("news")
DEAD, BACK = (NodeId(bytes(31) + bytes([n])) for n in (2, 3))


def _neighbours() -> tuple[TopicContext, Neighbours]:
    me, rng = Identity(bytes(31) + b"\x01"), random.Random(1)
    context = TopicContext(me, rng, Metrics(), lambda peer: Status.ALIVE, lambda peer: (peer,))
    for peer in (DEAD, BACK):
        context.subscribers.add(SCOPE, peer)
    return context, Neighbours(context, SCOPE, lambda peer, now: None, lambda peer: None)


def test_a_member_that_has_been_away_for_long_holds_up_no_other_ones_return() -> None:
    context, neighbours = _neighbours()
    context.links.avoid(DEAD, 0.0)
    neighbours.start(10.0)
    context.links.avoid(BACK, 10.0)
    neighbours.on_connect_failed(BACK, 10.0)
    context.timers.run(10.2)
    assert BACK not in neighbours.wanted
    for now in (12.3, 12.5):
        context.timers.run(now)
    assert BACK in neighbours.wanted


def test_a_peer_that_parts_without_end_leaves_one_deadline() -> None:
    context, neighbours = _neighbours()
    neighbours.start(10.0)
    now = 10.0
    for _ in range(100):
        context.links.avoid(DEAD, now)
        neighbours.choose_soon(now)
        now += 0.15
        context.timers.run(now)
    assert len(context.timers._heap) <= 10
