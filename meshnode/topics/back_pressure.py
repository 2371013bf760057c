"""Back-pressure of a topic: full links hold its publishers back. Sans I/O.

A link whose queue is over its mark presses. A node under pressure from a neighbour sends HOLD to the others, so it
reaches the publishers hop by hop, against the direction of their messages. Only publishers wait, while messages under
way go on, so there is no deadlock; and a publisher waits at most a second for each message, so false HOLDs cannot
silence it. A HOLD carries the distance of the full link, never goes back to the peer that it came from, and ends after
``MAX_HOPS``: in a circle of links none keeps itself alive.

A link that presses too long is *slow*: for a while it holds no publisher back, and gets what its queue has room for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from meshnode.base.limits import TOPIC_LINK_MARK
from meshnode.base.value import state
from meshnode.identity.node_id import NodeId
from meshnode.topics.messages import MAX_HOPS

FULL_S = 2.0  # a link of this node presses at most this long without taking half its window: 16 kB/s
HELD_S = 10.0  # a neighbour presses at most this long: longer, for it knows which of its links is slow
SLOW_S = 60.0  # for this long afterwards, its pressure does not count
REPEAT_S = 0.5
VOID_S = 1.5  # a HOLD that is not repeated within this ends


@state
class _Pressing:
    """Pressure from one neighbour: its link is over the mark, or it says HOLD."""

    full: float | None = None  # since when its queue is over the mark, or when its link last took something
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
        if _over(self.full, FULL_S, now) or _over(self.told, HELD_S, now):
            self.slow = now + SLOW_S
            return None
        return 0 if self.full is not None else self.hops + 1


def _over(since: float | None, limit: float, now: float) -> bool:
    return since is not None and now - since > limit


class BackPressure:
    """Back-pressure of one topic. ``eager`` are the neighbours that exchange payloads: others hold none back."""

    def __init__(self, eager: Collection[NodeId]) -> None:
        self._eager = eager
        self._peers: dict[NodeId, _Pressing] = {}
        self._told: dict[NodeId, tuple[int, float]] = {}  # neighbours that were sent HOLD: hops, and when

    def weigh(self, waiting: Mapping[NodeId, int], now: float) -> bool:
        """Take the bytes that wait for each link; returns whether other links press now than before.

        A link presses from ``TOPIC_LINK_MARK`` bytes on, until half of that.
        """
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
        """Note that a link ``hops`` beyond ``peer`` is full.

        It counts for ``VOID_S``, unless it is repeated, and for ``HELD_S`` at most.
        """
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
        """Return the neighbours that hold this node's publishing back, with the hops to the full link.

        0 hops is a link of this node. Only eager neighbours count, and no slow ones.
        """
        if not self._peers:
            return {}
        levels = {peer: found.level(now) for peer, found in self._peers.items() if peer in self._eager}
        return {peer: level for peer, level in levels.items() if level is not None}

    def tell(self, now: float) -> list[tuple[NodeId, int | None]]:
        """Return the HOLDs (with their hops) and RELEASEs (None) to send now.

        To be called when the pressure changes, and each ``REPEAT_S`` while ``tells``. What a neighbour presses is told
        to all others, with the least distance of them.
        """
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
