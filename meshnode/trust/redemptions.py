"""Uses of invitations: which keys joined with one, so that no more of them are admitted than it is for.

The holder of a ticket can make grants for any number of keys, offline. So each node counts: of one invitation it admits
the first keys that it hears of, from the nodes themselves or by gossip, and no more. Nodes that are cut off from each
other may each admit their own first ones; when they meet again, each sees that there are too many (``excess``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from meshnode.base.limits import MAX_INVITES
from meshnode.identity.node_id import NodeId
from meshnode.trust.chain import SKEW_MS, Standing


class Redemptions:
    """The keys that joined by each invitation, in the order in which this node heard of them."""

    def __init__(self) -> None:
        self.excess: dict[str, NodeId] = {}  # the last key that was one too many, by invitation
        self.on_new: Callable[[], None] = lambda: None
        self._keys: dict[str, dict[NodeId, None]] = {}
        self._ends: dict[str, int] = {}  # when nothing that was made with it holds any more

    def admit(self, standing: Standing, wall: float) -> bool:
        """Count the key of a verified chain; False when its invitation was used by as many others already.

        Chains without an invitation, and invitations for any number of keys, are not counted.
        """
        invite = standing.invite
        if invite is None:
            return True
        if invite.id not in self._keys and not self._make_room(wall):
            return False
        keys, key = self._keys.setdefault(invite.id, {}), standing.former or standing.id
        self._ends[invite.id] = max(standing.expires, self._ends.get(invite.id, 0))
        if key in keys:
            return True
        if len(keys) >= invite.uses:
            self.excess[invite.id] = standing.id
            return False
        keys[key] = None
        self.on_new()
        return True

    def _make_room(self, wall: float) -> bool:
        """Forget invitations of which nothing holds any more; False when there are too many others."""
        if len(self._keys) >= MAX_INVITES:
            for name in [name for name, end in self._ends.items() if end + SKEW_MS < wall * 1000]:
                del self._keys[name], self._ends[name]
                self.excess.pop(name, None)
        return len(self._keys) < MAX_INVITES

    def saved(self) -> dict[str, object]:
        """Return what ``restore`` takes, as JSON has it."""
        return {
            name: {"ends": self._ends[name], "keys": [str(key) for key in keys]} for name, keys in self._keys.items()
        }

    def restore(self, saved: Mapping[str, tuple[int, Iterable[NodeId]]]) -> None:
        """Take what an earlier process of this node has counted."""
        for name, (ends, keys) in saved.items():
            if len(self._keys) < MAX_INVITES:
                self._keys[name], self._ends[name] = dict.fromkeys(keys), ends
