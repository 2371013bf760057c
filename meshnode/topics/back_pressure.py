"""Back-pressure of a topic: full links hold its publishers back. Sans I/O.

A link whose queue is over its mark presses. A node under pressure from a neighbour sends HOLD to the others, so it
reaches the publishers hop by hop, against the way of their messages. Only publishers wait: what is under way goes on,
so nothing can lock; and for one message a second at most, so a liar cannot silence them. A HOLD has the distance of
the full link, never goes back to where it comes from, and ends after so many hops: in a circle that is not cut yet
none keeps itself alive.

A link that presses too long is *slow*: it holds no publisher back for a while, and takes what its queue has room for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from meshnode.base.limits import TOPIC_LINK_MARK
from meshnode.identity.node_id import NodeId
from meshnode.topics.messages import MAX_HOPS

FULL_S = 2.0  # a link of this node may press so long without taking half its window: 16 kB/s
HELD_S = 10.0  # a neighbour may longer, for it knows which of its links is slow
SLOW_S = 60.0  # then its pressure counts for nothing
REPEAT_S = 0.5
VOID_S = 1.5  # a HOLD that is not repeated


@dataclass(slots=True)
class _Pressing:
    full: float | None = None  # our link to it is over its mark: since then, or when it last took something
    told: float | None = None  # since when it says HOLD
    hops: int = 0  # from it to the full link
    heard: float = 0.0  # when it last did
    slow: float = 0.0  # until when it does not count

    def level(self, now: float) -> int | None:
        """Return the hops from here to the full link; None when none presses, or it is slow."""
        if self.told is not None and now - self.heard > VOID_S:
            self.told = None
        if self.slow > now or (self.full is None and self.told is None):
            return None
        if (self.full is not None and now - self.full > FULL_S) or (self.told is not None and now - self.told > HELD_S):
            self.slow = now + SLOW_S
            return None
        return 0 if self.full is not None else self.hops + 1


class BackPressure:
    """Back-pressure of one topic. ``eager`` are the neighbours that exchange payloads: others hold none back."""

    def __init__(self, eager: Collection[NodeId]) -> None:
        self._eager = eager
        self._peers: dict[NodeId, _Pressing] = {}
        self._told: dict[NodeId, tuple[int, float]] = {}  # neighbours that were sent HOLD: hops, and when

    def weigh(self, waiting: Mapping[NodeId, int], now: float) -> bool:
        """Take the bytes that wait for each link; True when another set of links presses now."""
        changed = False
        for peer, size in waiting.items():
            if size > TOPIC_LINK_MARK:
                found = self._peers.setdefault(peer, _Pressing())
                if found.full is None:
                    found.full = now
                    changed = True
        for peer, found in self._peers.items():
            if found.full is not None and waiting.get(peer, 0) <= TOPIC_LINK_MARK // 2:
                found.full = None
                changed = True
        return changed

    def on_progress(self, peer: NodeId, now: float) -> None:
        """Note that the link to ``peer`` took something."""
        found = self._peers.get(peer)
        if found is not None and found.full is not None:
            found.full = now

    def on_hold(self, peer: NodeId, hops: int, now: float) -> None:
        """Note that a link ``hops`` beyond ``peer`` is full."""
        found = self._peers.setdefault(peer, _Pressing())
        found.heard = now
        found.hops = hops
        if found.told is None:
            found.told = now

    def on_release(self, peer: NodeId) -> None:
        """Note that ``peer`` holds back no longer."""
        found = self._peers.get(peer)
        if found is not None:
            found.told = None

    def forget(self, peer: NodeId) -> None:
        """Forget a neighbour."""
        self._peers.pop(peer, None)
        self._told.pop(peer, None)

    def pressing(self, now: float) -> dict[NodeId, int]:
        """Return the neighbours that hold this node's publishing back, with the hops to the full link."""
        if not self._peers:
            return {}
        levels = {peer: found.level(now) for peer, found in self._peers.items() if peer in self._eager}
        return {peer: level for peer, level in levels.items() if level is not None}

    def tell(self, now: float) -> list[tuple[NodeId, int | None]]:
        """Return the HOLDs (hops) and RELEASEs (None) to send; again in ``REPEAT_S`` while ``tells``."""
        pressing = self.pressing(now)
        found: list[tuple[NodeId, int | None]] = []
        for peer in dict.fromkeys((*self._eager, *self._told)):
            hops = min((level for other, level in pressing.items() if other != peer), default=MAX_HOPS)
            told = self._told.get(peer)
            if hops >= MAX_HOPS or peer not in self._eager:
                if told is not None:
                    del self._told[peer]
                    found.append((peer, None))
            elif told is None or hops > told[0] or now - told[1] >= REPEAT_S:
                self._told[peer] = hops, now
                found.append((peer, hops))
        return found

    @property
    def tells(self) -> bool:
        """True while a neighbour is held back."""
        return bool(self._told)
