"""Members of topics, as SUBSCRIPTION entries name them. Sans I/O."""

from __future__ import annotations

from meshnode.base.limits import TOPIC_MAX_SUBSCRIBERS
from meshnode.identity.node_id import NodeId


class Subscribers:
    """The members of all topics, bounded together."""

    def __init__(self) -> None:
        self._of: dict[bytes, dict[NodeId, None]] = {}
        self._count = 0

    def of(self, scope: bytes) -> dict[NodeId, None]:
        """Return the members of a topic, in the order in which their entries came."""
        return self._of.get(scope, {})

    def add(self, scope: bytes, peer: NodeId) -> bool | None:
        """Add a member; returns True when it is new, False when it is known.

        None when there is no room: ``TOPIC_MAX_SUBSCRIBERS`` are kept, counted over all topics.
        """
        if peer in self.of(scope):
            return False
        if self._count >= TOPIC_MAX_SUBSCRIBERS:
            return None
        self._of.setdefault(scope, {})[peer] = None
        self._count += 1
        return True

    def remove(self, scope: bytes, peer: NodeId) -> None:
        """Remove a member; one that is not known changes nothing."""
        members = self.of(scope)
        if peer in members:
            del members[peer]
            self._count -= 1
            if not members:
                del self._of[scope]
