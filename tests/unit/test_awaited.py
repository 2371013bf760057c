"""Payloads that were announced: no link fills the places of what the others announce."""

from __future__ import annotations

from meshnode.base.limits import GOSSIP_MAX_MISSING
from meshnode.base.metrics import Metrics
from meshnode.base.timers import Timers
from meshnode.gossip.dissemination.awaited import Awaited, Wanted
from meshnode.identity.node_id import NodeId

LIAR, HONEST, OTHER = (NodeId(bytes(31) + bytes([n])) for n in (1, 2, 3))


def test_what_an_honest_link_announced_is_asked_for_whatever_another_announces() -> None:
    asked: Wanted = {}

    def ask(wanted: Wanted, now: float) -> None:
        for peer, items in wanted.items():
            asked.setdefault(peer, []).extend(items)

    timers, metrics = Timers(), Metrics()
    awaited = Awaited(timers, metrics, (0.3, 0.3), ask, lambda peer: True, None)
    before = [b"before%02d" % n for n in range(20)]
    after = [b"after_%02d" % n for n in range(20)]
    for item in before:
        awaited.announced(HONEST, item, 1, 0.0)
    for n in range(3 * GOSSIP_MAX_MISSING):
        awaited.announced(LIAR, b"fake%d" % n, 1, 0.0)
    for item in after:
        awaited.announced(OTHER, item, 1, 0.0)
    assert len(awaited) == GOSSIP_MAX_MISSING
    awaited.arm()
    timers.run(1.0)
    assert asked[HONEST] == before
    assert asked[OTHER] == after
    assert metrics.counters["gossip_missing_full"] > GOSSIP_MAX_MISSING


def test_places_are_free_again_when_payloads_came_or_no_announcer_is_left() -> None:
    timers = Timers()
    awaited = Awaited(timers, Metrics(), (0.3, 0.3), lambda wanted, now: None, lambda peer: False, None)
    for n in range(GOSSIP_MAX_MISSING):
        awaited.announced(LIAR, b"%d" % n, 1, 0.0)
    assert awaited.received(b"7") == [(LIAR, 1)]
    awaited.arm()
    timers.run(1.0)
    assert len(awaited) == 0
    awaited.announced(HONEST, b"next", 1, 1.0)
    assert len(awaited) == 1
