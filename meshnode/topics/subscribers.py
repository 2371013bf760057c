"""Who has joined which topic, as the mesh's entries say. Sans I/O."""

from __future__ import annotations

from meshnode.base.limits import TOPIC_MAX_SUBSCRIBERS
from meshnode.identity.node_id import NodeId

SCOPE_LENGTH = 16


def scope_in(name: str) -> bytes | None:
    """The scope that names a SUBSCRIPTION entry."""
    try:
        scope = bytes.fromhex(name)
    except ValueError:
        return None
    return scope if len(scope) == SCOPE_LENGTH else None


class Subscribers:
    """The members of all topics, bounded together."""

    def __init__(self) -> None:
        self._of: dict[bytes, dict[NodeId, None]] = {}
        self._count = 0

    def of(self, scope: bytes) -> dict[NodeId, None]:
        """The members of a topic, in the order in which they were heard of."""
        return self._of.get(scope, {})

    def add(self, scope: bytes, peer: NodeId) -> bool | None:
        """True when that is news, None when there is no room."""
        if peer in self.of(scope):
            return False
        if self._count >= TOPIC_MAX_SUBSCRIBERS:
            return None
        self._of.setdefault(scope, {})[peer] = None
        self._count += 1
        return True

    def remove(self, scope: bytes, peer: NodeId) -> None:
        """A member no more."""
        members = self.of(scope)
        if peer in members:
            del members[peer]
            self._count -= 1
            if not members:
                del self._of[scope]
