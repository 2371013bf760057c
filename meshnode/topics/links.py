"""Connections of this node as topics see them, and the members that do not answer. Sans I/O."""

from __future__ import annotations

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import TOPIC_MAX_SUBSCRIBERS
from meshnode.identity.node_id import NodeId

AVOID_S, MAX_AVOID_S = 2.0, 60.0  # a member that does not answer is passed over for this long, doubling


class Links:
    """Peers with a connection, those whose connection takes nothing at present, and those to be passed over."""

    def __init__(self) -> None:
        self.up: dict[NodeId, None] = {}
        self.busy: dict[NodeId, None] = {}
        self._avoided: BoundedDict[NodeId, tuple[float, float]] = BoundedDict(TOPIC_MAX_SUBSCRIBERS)  # until, wait

    def on_link(self, peer: NodeId, up: bool) -> None:
        """Note that a connection came or went; a peer that has one is no longer avoided."""
        if up:
            self.up[peer] = None
            self._avoided.pop(peer, None)
        else:
            self.up.pop(peer, None)
            self.busy.pop(peer, None)

    def avoid(self, peer: NodeId, now: float) -> None:
        """Pass a peer over for ``AVOID_S``; each further time for twice as long, up to ``MAX_AVOID_S``.

        A connection ends that, and the next time is short again.
        """
        before = self._avoided.get(peer)
        wait = min(MAX_AVOID_S, before[1] * 2) if before is not None else AVOID_S
        self._avoided.put(peer, (now + wait, wait))

    def is_avoided(self, peer: NodeId, now: float) -> bool:
        """Return whether the peer is to be passed over now."""
        return self._avoided.get(peer, (0.0, 0.0))[0] > now

    def avoided_until(self, now: float) -> float | None:
        """Return when the first of those that are avoided now may be chosen again; None when there is none."""
        return min((until for until, _ in self._avoided.values() if until > now), default=None)
