"""Liveness of the active path: when an expected packet is overdue, and when a keepalive is due.

Only time in which this process itself ran counts. A watchdog that fires late shows that this process got no CPU, and
packets that came meanwhile may be unread still: it is set once more, from now on (Lifeguard's local health, Dadgar et
al. 2018).
"""

from __future__ import annotations

import random

from meshnode.base.address import Addr
from meshnode.base.limits import KEEPALIVE_S
from meshnode.base.timers import shared_time

SILENCE_MIN_S = 0.08
SILENCE_RTTS = 1.25
SILENCE_MAX_S = 4.0
UNMEASURED_RTT_S = 0.1
TIMER_SLACK_S = 0.03  # a timer that fires later than this was held up: its granularity is finer
RARE_S, RARE_GROWS = 50.0, 1.25  # twice in OBSERVATION_S: what the NAT maps this node to has to be known
OFTEN_S = 3.0  # twice ``SHARED_S``: the shortest time between keepalives, where a connection's idle time is short
LEAF_SILENT_S = 4 * RARE_S  # a leaf that was not heard for this long is asked
STARVED_S = 0.25  # a process that is later than this, by itself, has no CPU; on a busy host most are late by less
MAX_EXCUSED_S = 3.0  # of a silence, in which a watchdog that fires late says nothing of the peer
DATA_EXPECTED_S = 1.0  # a stream that delivered within this is busy

NEVER = float("-inf")


def threshold(rtt: float | None) -> float:
    """Return after how many seconds a missing answer is suspicious on a path with this round trip.

    80 ms and 1.25 round trips, 2 s at most; an unknown round trip (None) counts as 100 ms.
    """
    return min(SILENCE_MAX_S, SILENCE_MIN_S + SILENCE_RTTS * (UNMEASURED_RTT_S if rtt is None else rtt))


class Watchdog:
    """Liveness watchdog of the active path: the time since which an expected packet is overdue.

    Times are monotonic seconds.

    Attributes:
        in_flight: Bytes sent and unacknowledged.
        data_at: When application data came last: more is to be expected. The path counts as busy for
            ``DATA_EXPECTED_S``. A silence right after data is suspicious once, since the stream may be at its end.
        fired_at: When it found a silence last.
        expecting_since: Since when an answer to a packet outside QUIC is expected; None while none is.
        look_at: When ``suspicious_at`` is to be asked again, infinite while nothing is expected.
    """

    __slots__ = (
        "_awake_since",
        "_excused_since",
        "_flight_began",
        "data_at",
        "expecting_since",
        "fired_at",
        "in_flight",
        "look_at",
    )

    def __init__(self, now: float) -> None:
        self.in_flight = 0
        self._flight_began = now
        self.data_at = NEVER
        self.expecting_since: float | None = None
        self.fired_at = NEVER
        self._awake_since = self._excused_since = NEVER
        self.look_at = float("inf")

    def set_in_flight(self, count: int, now: float) -> None:
        """Set how many bytes are sent and unacknowledged."""
        if count and not self.in_flight:
            self._flight_began = now
        self.in_flight = count

    def expect(self, now: float) -> None:
        """Take note that something which the peer answers was sent."""
        if self.expecting_since is None:
            self.expecting_since = now

    def answered(self) -> None:
        """Take note of the answer to what was expected."""
        self.expecting_since = None

    @property
    def awaits_answer(self) -> bool:
        """True while packets or PINGs of this node are not answered."""
        return self.in_flight > 0 or self.expecting_since is not None

    def restart(self, now: float) -> None:
        """Count from now on: the path works."""
        self.expecting_since = None
        self._flight_began = now

    def is_busy(self, now: float) -> bool:
        """Return whether data is under way."""
        return self.in_flight > 0 or now - self.data_at < DATA_EXPECTED_S

    def suspicious_at(self, heard: float, rtt: float | None) -> float | None:
        """Return when silence is suspicious on a path last heard of at ``heard``.

        It is ``threshold`` after the latest of ``heard`` and the beginning of what is expected: an answer, an ACK, more
        data. None while nothing is expected. ``rtt`` is seconds, None when unmeasured.
        """
        since = None
        if self.expecting_since is not None:
            since = self.expecting_since
        if self.in_flight and (since is None or self._flight_began < since):
            since = self._flight_began
        if self.fired_at < self.data_at and (since is None or self.data_at < since):
            since = self.data_at  # a stream that just delivered is expected to go on; asked once
        return None if since is None else max(since, heard, self._awake_since) + threshold(rtt)

    def is_real(self, due: float, heard: float, now: float, late: float) -> bool:
        """Take note that the watchdog due at ``due`` fired; False when it fired late.

        Late is more than ``TIMER_SLACK_S``: this process got no CPU, and what has come may be unread. It is excused,
        and the timer counts from ``now``: once a silence, and again for up to ``MAX_EXCUSED_S`` while the process is
        ``late`` by ``STARVED_S``.
        """
        if now - due > TIMER_SLACK_S:
            is_first = self._awake_since <= heard
            if is_first:
                self._excused_since = now
            if is_first or (late >= STARVED_S and now - self._excused_since < MAX_EXCUSED_S):
                self._awake_since = now
                return False
        self.fired_at = now
        return True


class Keepalive:
    """The schedule of keepalives on an idle path: every 15 s, give or take a tenth. ``at`` is None until a connection.

    It is one of the times that all peers of a node share (``base.timers.shared_time``).

    NATs hold a UDP mapping open for 30 s and more (RFC 4787 REQ-5 asks for two minutes). Where keepalives are to be
    ``rare``, the time between two grows up to ``RARE_S`` while each finds this node's address as the one before did: an
    address that has changed meanwhile shows that the NAT had given the mapping up, so it is halved, and grows no more.

    It is never more than a third of the connection's ``idle`` time, so that there are two chances to prolong that.
    """

    __slots__ = ("_longest", "_most", "_phase", "_rare", "_rng", "_seen", "at", "every_s")

    def __init__(
        self, rng: random.Random, *, rare: bool = False, phase: float = 0.0, idle: float = float("inf")
    ) -> None:
        self.at: float | None = None
        self._most = max(OFTEN_S, idle / 3)
        self.every_s = min(KEEPALIVE_S, self._most)
        self._longest = min(RARE_S, self._most) if rare else self.every_s
        self._phase = phase
        self._rare = rare
        self._rng = rng
        self._seen: Addr | None = None

    def leave_to_peer(self) -> None:
        """Wait long for the peer's keepalives: it is a leaf, and knows how rare they may be."""
        if not self._rare:
            self.every_s = self._longest = min(LEAF_SILENT_S, self._most)

    def answered(self, seen: Addr) -> None:
        """Take the address from which the peer saw a keepalive come."""
        if not self._rare:
            return
        if self._seen not in (None, seen):
            self.every_s = self._longest = min(max(KEEPALIVE_S, self.every_s / 2), self._most)
        else:
            self.every_s = min(self._longest, self.every_s * RARE_GROWS)
        self._seen = seen

    def renew(self, now: float) -> None:
        """Put the next keepalive off: a packet has just shown that the path works, or one was sent."""
        self.at = shared_time(now + self.every_s * self._rng.uniform(0.9, 1.1), self._phase)
