"""Counts of invitations: bounded, by share, and never given up while a ticket could be used again."""

from __future__ import annotations

import json
from itertools import count

from meshnode.base.limits import MAX_INVITED, MAX_INVITED_OTHERS, MAX_INVITED_SHARE
from meshnode.identity.node_id import NodeId
from meshnode.runtime.grant_store import _parse
from meshnode.runtime.state_files import MAX_STATE
from meshnode.trust.chain import Invite, Standing
from meshnode.trust.redemptions import Redemptions

WALL = 1_700_000_000.0
MS = round(WALL * 1000)
numbers = count(1)


def _joined(invite: str, *, uses: int = 1, first: str = "", expires: int = MS + 1000, key: int = 0) -> Standing:
    """A key's grants, by an invitation of the authority, or of a delegate whose first grant is ``first``."""
    node = NodeId((key or next(numbers)).to_bytes(32, "big"))
    grants = (*([first] if first else []), invite, "own")
    return Standing(node, frozenset(), None, MS, expires, grants, (), None, Invite(invite, uses), ())


def _name() -> str:
    return f"{next(numbers):016x}"


def test_one_delegate_has_its_share_and_all_of_them_take_no_place_of_the_authoritys() -> None:
    found = Redemptions()
    delegates = [_name() for _ in range(MAX_INVITED_OTHERS // MAX_INVITED_SHARE + 1)]
    taken = {
        first: sum(found.admit(_joined(_name(), first=first), WALL) for _ in range(MAX_INVITED_SHARE + 1))
        for first in delegates
    }
    assert list(taken.values()) == [*[MAX_INVITED_SHARE] * (len(delegates) - 1), 0]
    assert found.admit(_joined(_name()), WALL)


def test_a_full_count_refuses_new_keys_keeps_old_ones_and_has_room_when_some_are_over() -> None:
    found, old, brief = Redemptions(), _name(), _name()
    assert found.admit(_joined(old, key=7, expires=MS + 10**9), WALL)
    while found.admit(_joined(brief, uses=MAX_INVITED), WALL):
        pass
    assert not found.admit(_joined(_name()), WALL)
    assert found.admit(_joined(old, key=7, expires=MS + 10**9), WALL), "its place is its own"
    assert not found.admit(_joined(old, key=8, expires=MS + 10**9), WALL)
    assert found.admit(_joined(_name(), expires=MS + 10**9), WALL + 3600), "what is over is forgotten"
    assert not found.admit(_joined(old, key=8, expires=MS + 10**9), WALL + 3600), "and nothing else is"


def test_all_that_is_counted_fits_a_state_file_and_counts_after_a_restart() -> None:
    found = Redemptions()
    first = [_name() for _ in range(MAX_INVITED_OTHERS // MAX_INVITED_SHARE)]
    everything = [_joined(_name()) for _ in range(MAX_INVITED)]
    everything += [_joined(_name(), first=each) for each in first for _ in range(MAX_INVITED_SHARE)]
    assert all(found.admit(standing, WALL) for standing in everything)
    data = json.dumps(found.saved()).encode()
    assert len(data) <= MAX_STATE, "a file that is too long is set aside, and every ticket is new again"
    again = Redemptions()
    again.restore(_parse(data))
    assert all(again.admit(standing, WALL) for standing in everything)
    assert not again.admit(_joined(everything[0].grants[0]), WALL)
    assert not again.admit(_joined(_name()), WALL), "the places are as full as before"
