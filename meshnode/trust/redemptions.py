"""Uses of invitations: which keys joined with one, so that no more of them are admitted than it is for.

The holder of a ticket can make grants for any number of keys, offline. So each node counts: of one invitation it admits
the first keys that it hears of, from the nodes themselves or by gossip, and no more. Nodes that are cut off from each
other may each admit their own first ones; when they meet again, each sees that there are too many (``excess``).

A count that was given up would let a ticket be used again, so nothing pushes one out: where there is no place, a key
is refused. A delegate makes any number of invitations, and so do those that came by it. So what its first grant let in
has a share, and all delegates together have one, beside the places of the authority's own invitations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from meshnode.base.limits import MAX_INVITED, MAX_INVITED_OTHERS, MAX_INVITED_SHARE
from meshnode.base.value import value
from meshnode.identity.node_id import NodeId
from meshnode.trust.chain import SKEW_MS, Standing

AUTHORITY = ""  # the share of invitations that the authority made itself


@value
class Uses:
    """One invitation, as it is saved.

    Attributes:
        share: The first grant of the delegate that made it, ``AUTHORITY`` for the authority's own.
        ends: When nothing that was made with it holds any more, in Unix milliseconds.
        keys: That joined by it, in the order in which this node heard of them.
    """

    share: str
    ends: int
    keys: tuple[NodeId, ...]


class Redemptions:
    """The keys that joined by each invitation, in the order in which this node heard of them."""

    def __init__(self) -> None:
        self.excess: dict[str, NodeId] = {}  # the last key that was one too many, by invitation
        self.on_new: Callable[[], None] = lambda: None
        self._keys: dict[str, dict[NodeId, None]] = {}
        self._ends: dict[str, int] = {}
        self._shares: dict[str, str] = {}
        self._held: Counter[str] = Counter()  # keys by share

    def admit(self, standing: Standing, wall: float) -> bool:
        """Count the key of a verified chain; False when its invitation was used by as many others already.

        Chains without an invitation, and invitations for any number of keys, are not counted.
        """
        invite, key = standing.invite, standing.former or standing.id
        if invite is None:
            return True
        keys = self._keys.get(invite.id, {})
        if key in keys:
            self._ends[invite.id] = max(standing.expires, self._ends[invite.id])
            return True
        if len(keys) >= invite.uses:
            self.excess[invite.id] = standing.id
            return False
        share = standing.grants[0] if len(standing.grants) > 2 else AUTHORITY
        if not self._has_room(share) and not (self._forget(wall) and self._has_room(share)):
            return False
        self._put(invite.id, share, standing.expires, key)
        self.on_new()
        return True

    def _put(self, name: str, share: str, ends: int, key: NodeId) -> None:
        self._keys.setdefault(name, {})[key] = None
        self._ends[name] = max(ends, self._ends.get(name, 0))
        self._shares[name] = share
        self._held[share] += 1

    def _has_room(self, share: str) -> bool:
        if share == AUTHORITY:
            return self._held[AUTHORITY] < MAX_INVITED
        others = self._held.total() - self._held[AUTHORITY]
        return self._held[share] < MAX_INVITED_SHARE and others < MAX_INVITED_OTHERS

    def _forget(self, wall: float) -> bool:
        """Forget invitations of which nothing holds any more; return whether there were some."""
        over = [name for name, end in self._ends.items() if end + SKEW_MS < wall * 1000]
        for name in over:
            share = self._shares.pop(name)
            self._held[share] -= len(self._keys.pop(name))
            if not self._held[share]:
                del self._held[share]
            del self._ends[name]
            self.excess.pop(name, None)
        return bool(over)

    def saved(self) -> dict[str, object]:
        """Return what ``restore`` takes, as JSON has it."""
        return {
            name: {"share": self._shares[name], "ends": self._ends[name], "keys": [str(key) for key in keys]}
            for name, keys in self._keys.items()
        }

    def restore(self, saved: Mapping[str, Uses]) -> None:
        """Take what an earlier process of this node has counted."""
        for name, uses in saved.items():
            for key in uses.keys:
                if self._has_room(uses.share) and key not in self._keys.get(name, {}):
                    self._put(name, uses.share, uses.ends, key)
