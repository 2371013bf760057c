"""Accepts each sealed datagram once. Reads no clock: it is given the times.

Nonces are remembered for as long as their stamps are accepted, in generations that are dropped whole. Their number is
bounded, and ids are free, so a flood from new ids would fill any bound. Then the time shrinks for which nonces are
remembered, and with it the age up to which datagrams are accepted: full means a shorter window, never a repeated
datagram, and never silence to all. Established peers (a connection, a contact, a seed) have places of their own.

A clock that is set back makes stamps acceptable again whose nonces were forgotten. From then on a datagram must be
newer than the newest that its sender was heard with before, which costs nothing when the sender's own clock went on.
"""

from __future__ import annotations

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import (
    MAX_REPLAY_AHEAD,
    MAX_REPLAY_ENTRIES,
    MAX_REPLAY_FLOORS,
    MAX_REPLAY_KEPT,
    MAX_REPLAY_PER_SENDER,
    MAX_REPLAY_RESERVED,
    REPLAY_AHEAD_S,
    SEAL_WINDOW_S,
)
from meshnode.identity.node_id import NodeId


class _Generations:
    """Two sets of nonces: the younger one grows, the older one is only asked."""

    __slots__ = ("began", "old", "young")

    def __init__(self, now: float) -> None:
        self.young: dict[bytes, None] = {}
        self.old: dict[bytes, None] = {}
        self.began = now  # of the younger one

    def turn(self, wall: float) -> None:
        self.old, self.young, self.began = self.young, {}, wall

    def is_over(self, wall: float) -> bool:
        """True when all stamps of the older one have expired; also when the clock was set back by so much."""
        return not -2 * SEAL_WINDOW_S <= wall - self.began <= 2 * SEAL_WINDOW_S


class ReplayGuard:
    """The nonces of all datagrams that were accepted, from any sender."""

    def __init__(self, now: float) -> None:
        self._shared = _Generations(now)
        self._reserved = _Generations(now)  # of established peers, and of stamps that are ahead of this node's clock
        self._senders: dict[NodeId, int] = {}
        self._ahead = 0
        self._oldest = float("-inf")  # nonces of stamps before this may have been forgotten
        self._wall = now
        self._newest: BoundedDict[NodeId, float] = BoundedDict(MAX_REPLAY_FLOORS)  # stamps accepted, a sender each
        self._newest_forgotten = float("-inf")  # of the senders that had no place there
        self._floors: BoundedDict[NodeId, float] = BoundedDict(MAX_REPLAY_FLOORS)  # ``_newest``, before the clock ...
        self._floor = float("-inf")  # ... was set back, and of all other senders

    def admit(self, sender: NodeId, nonce: bytes, sent: float, wall: float, *, established: bool = False) -> str:
        """Accept a nonce that is new, and remember it.

        Args:
            sender: Whose datagram it is; proven.
            nonce: The datagram's nonce.
            sent: The datagram's stamp in Unix seconds, at most ``SEAL_WINDOW_S`` from ``wall``.
            wall: This node's clock in Unix seconds.
            established: The sender has a connection, or is a contact or a seed, so a few places are its own.

        Returns:
            "" when the datagram counts, else why it does not: "replay", or "full" for a sender that has used up its
            share, and for a stamp that is older than what the guard remembers at this rate of new nonces, or
            "set_back" for one that may have been accepted before this node's clock was set back.
        """
        if wall < self._wall:
            self._on_set_back()
        self._wall = wall
        self._turn_when_over(wall)
        shared, reserved = self._shared, self._reserved
        if nonce in shared.young or nonce in reserved.young or nonce in shared.old or nonce in reserved.old:
            return "replay"
        if sent <= self._floors.get(sender, self._floor):
            return "set_back"
        used = self._senders.get(sender, 0)
        if used >= MAX_REPLAY_PER_SENDER or sent < self._oldest:
            return "full"
        if established and used < MAX_REPLAY_RESERVED and len(reserved.young) < MAX_REPLAY_KEPT:
            reserved.young[nonce] = None
        elif sent > wall + REPLAY_AHEAD_S:  # forgotten early, it would count once more: these are kept to the end
            if self._ahead >= MAX_REPLAY_AHEAD:
                return "full"
            self._ahead += 1
            reserved.young[nonce] = None
        else:
            if len(shared.young) >= MAX_REPLAY_ENTRIES:
                self._oldest = shared.began + REPLAY_AHEAD_S
                shared.turn(wall)
                if sent < self._oldest:
                    return "full"
            shared.young[nonce] = None
        self._senders[sender] = used + 1
        if sent > self._newest.get(sender, float("-inf")):
            pushed_out = self._newest.put(sender, sent)
            if pushed_out is not None:
                self._newest_forgotten = max(self._newest_forgotten, pushed_out[1])
        return ""

    def _on_set_back(self) -> None:
        for sender, newest in self._newest.items():
            pushed_out = self._floors.put(sender, max(newest, self._floors.get(sender, self._floor)))
            if pushed_out is not None:
                self._newest_forgotten = max(self._newest_forgotten, pushed_out[1])
        self._floor = max(self._floor, self._newest_forgotten)

    def _turn_when_over(self, wall: float) -> None:
        if self._shared.is_over(wall):
            if wall < self._shared.began:
                self._oldest = float("-inf")  # the clock was set back
            self._shared.turn(wall)
        if self._reserved.is_over(wall):
            self._reserved.turn(wall)
            self._senders, self._ahead = {}, 0
