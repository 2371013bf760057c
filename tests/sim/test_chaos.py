"""A few seeds of ``./dev chaos``, whose names say how to repeat them; and proof that the check can fail.

After a change of gossip more of them are run by hand: ``./dev chaos --seeds 200``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench import invariants
from bench.chaos import one
from meshnode.directory.names import Names
from meshnode.gossip import Kind, entry
from meshnode.gossip import router as gossip
from meshnode.gossip.dissemination.anti_entropy import AntiEntropy
from meshnode.gossip.dissemination.entry_store import EntryStore, Put
from meshnode.gossip.membership.accusations import Accusations
from meshnode.gossip.membership.reputation import Reputation
from tests.sim.gossip_sim import GossipNet

FOUND = (248, 279, 293, 373)  # what broke once


@pytest.mark.parametrize("seed", [*range(8), *FOUND])
def test_the_invariants_hold_under_everything_at_once(seed: int) -> None:
    assert one(seed)[1] == "", f"repeat with: ./dev chaos --seed {seed}"


def _always(value: object) -> Callable[..., Any]:
    return lambda *args, **options: value


def _first_living(names: Names, label: str, wall: float) -> object:
    return next((claim.node for claim in names._living(label, wall)), None)


@pytest.mark.parametrize(
    ("where", "what", "instead", "said"),
    [
        (entry, "_signed", _always(True), "did not sign"),
        (entry, "GOSSIP_MAX_FUTURE_S", 10**6, "of the future"),
        (EntryStore, "judge", _always(Put.NEW), "went back"),
        (EntryStore, "_make_room", _always(True), "entries of"),
        (AntiEntropy, "ask", _always(None), "which lives"),
        (Accusations, "refute", _always(None), "which lives"),
        (Reputation, "lower", _always(False), "blamed no node"),
        (Names, "resolve", _first_living, "in silence"),
        (gossip, "WireError", KeyError, "WireError"),
    ],
)
def test_the_check_fails_when_the_code_is_broken(
    monkeypatch: pytest.MonkeyPatch, where: object, what: str, instead: object, said: str
) -> None:
    monkeypatch.setattr(where, what, instead)
    assert any(said in one(seed)[1] for seed in range(12))


@pytest.mark.parametrize("linked", [False, True])
def test_only_a_neighbour_without_the_newer_value_of_another_is_at_fault(
    monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    """Full nodes between two others hold a newer value back from the one that has the older."""
    monkeypatch.setattr(AntiEntropy, "ask", _always(None))
    net = GossipNet(1, loss=0.0)
    one_node, other = net.add(), net.add()
    older, newer = (one_node.gossip.publish(Kind.SERVICE, "s", value, 3600, net.now) for value in (b"old", b"new"))
    other.gossip.store.put(older)
    if linked:
        net.join(other, one_node)
        net.run(1.0)
    assert invariants._excused(net, net.nodes, other, newer, {}) is not linked
