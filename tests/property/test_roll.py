"""Networks of a roll: a crowd counts as no more of them than its nodes answer in, whatever else their records name."""

from __future__ import annotations

import random
from functools import cache

from hypothesis import assume, given
from hypothesis import strategies as st

from meshnode.base.address import Addr
from meshnode.gossip.dissemination.roll import Listed, Roll
from meshnode.identity.keys import Identity
from meshnode.identity.record import Endpoint, EndpointRecord

ID = Identity(bytes(32)).id
OWN, CROWD = 50, 60  # networks: this node's, and the first of a crowd's; it may name any, of others and its victim, too
NAMED = st.lists(st.integers(0, 64), max_size=5)
HONEST = st.lists(st.integers(0, 20), max_size=30)


@cache
def _record(networks: tuple[int, ...]) -> EndpointRecord:
    return EndpointRecord(ID, 1, 1, 1, tuple(Endpoint(Addr(f"5.{network}.0.1", 4000)) for network in networks))


def _roll(networks: list[tuple[int, ...]]) -> Roll:
    members = [Listed(ID, _record(named), False) for named in networks]
    return Roll(random.Random(1), lambda: members, lambda: _record((OWN,)), lambda *asked: False)


@given(honest=HONEST, crowd=st.lists(st.tuples(NAMED, NAMED), min_size=2, max_size=60))
def test_a_crowd_in_one_network_counts_as_one(honest: list[int], crowd: list[tuple[list[int], list[int]]]) -> None:
    members = [(one,) for one in honest] + [(*before, CROWD, *after) for before, after in crowd]
    networks = len(set(honest)) + 1
    assert _roll(members).is_free(networks + 1), "there is a place for each of them and for this node's"


@given(honest=HONEST, crowd=st.lists(st.tuples(NAMED, st.integers(0, 2)), min_size=1, max_size=200))
def test_a_crowd_in_three_networks_counts_as_a_few(honest: list[int], crowd: list[tuple[list[int], int]]) -> None:
    members = [(one,) for one in honest] + [(*named, CROWD + at) for named, at in crowd]
    at_most = len({at for _, at in crowd}) * sum(1 / number for number in range(1, len(crowd) + 1))
    places = len(set(honest)) + int(at_most) + 1
    assume(places <= len(members))
    assert _roll(members).is_free(places)
