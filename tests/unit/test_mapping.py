"""What a node concludes of its NAT from others' views of it."""

from __future__ import annotations

import pytest

from meshnode.base.address import Addr
from meshnode.identity.keys import Identity
from meshnode.nat.mapping import Mapping
from meshnode.nat.view import NatView

OWN = Addr("10.0.0.2", 4242)
PEERS = [(Identity(bytes([n]) * 32).id, Addr(f"198.51.100.{n}", 1)) for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("seen", "mapping", "symmetric"),
    [
        ([], Mapping.UNKNOWN, False),
        ([OWN], Mapping.NONE, False),
        ([Addr("203.0.113.1", 4242)], Mapping.UNKNOWN, False),  # it keeps the port: most likely for all peers
        ([Addr("203.0.113.1", 999)], Mapping.UNKNOWN, True),  # it does not: suspected until a second one speaks
        ([Addr("203.0.113.1", 999)] * 2, Mapping.INDEPENDENT, False),
        ([Addr("203.0.113.1", 999), Addr("203.0.113.1", 1_000)], Mapping.DEPENDENT, True),
    ],
)
def test_a_nat_is_taken_for_what_its_observers_show(seen: list[Addr], mapping: Mapping, symmetric: bool) -> None:
    view = NatView()
    view.mappings.moved(frozenset([OWN]))
    for (peer, at), addr in zip(PEERS, seen, strict=False):
        view.observed(peer, at, addr, 0.0)
    assert view.mappings.behaviour(4, 1.0) is mapping
    assert view.mappings.symmetric(1.0) is symmetric
