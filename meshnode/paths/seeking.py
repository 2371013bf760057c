"""Probing of all candidates while the peer does not answer: a dial, a silence, a move of this node.

The gaps between rounds grow from 10 ms to 5 s. After 2 s of silence the connection is suspended: its streams stay open.
"""

from __future__ import annotations

import random
from enum import Enum

from meshnode.base.limits import BASE_MTU, MAX_MOVED_PADDED
from meshnode.base.path import ViaRelay, ViaTunnel
from meshnode.base.path_reason import PathReason
from meshnode.paths.candidate import Candidate, CandidateBook
from meshnode.paths.effects import (
    MOVED,
    SEEKING,
    Answered,
    FellSilent,
    Journal,
    NeedRecord,
    Nudge,
    Resumed,
    Suspended,
)
from meshnode.paths.liveness import STARVED_S, TIMER_SLACK_S, threshold
from meshnode.paths.validation import Validation

PROBE_GAPS_S = (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.5, 1.0, 2.0, 5.0)  # the last repeats
DIAL_GAPS_S = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0)  # between probes of all candidates while a dial is not answered
SUSPEND_AFTER_S = 2.0
ASK_MIN_S, ASK_MAX_S = 0.15, 60.0  # between queries for the peer's record, in doubling pauses: it may be gone for good
LATE_ROUNDS = 3  # of rounds that come late, one in so many goes to all candidates
SLOW_S = 0.5  # a silence that is not suspicious before this: the peer is asked where it is first, elsewhere next
TUNNEL_AFTER_S = 0.25  # a WebSocket costs a TCP and a TLS handshake: only when nothing else has answered


class Connectivity(Enum):
    """Reachability of the peer, as far as its paths show."""

    CONNECTED = "connected"
    SEEKING = "seeking"
    SUSPENDED = "suspended"


class Seeking:
    """The rounds of probes to all candidates, and their deadlines (monotonic seconds, None while there is none).

    ``silent_since`` is when the silence began; ``moved`` is true until the peer answers after a move of this node;
    ``dialled_at`` is when the dial began that is not done yet.
    """

    __slots__ = (
        "_ask_after",
        "_book",
        "_dial_step",
        "_journal",
        "_rng",
        "_step",
        "_validation",
        "connectivity",
        "dial_at",
        "dialled_at",
        "moved",
        "next_probe",
        "silent_since",
    )

    def __init__(self, book: CandidateBook, validation: Validation, journal: Journal, rng: random.Random) -> None:
        self.connectivity = Connectivity.CONNECTED
        self.silent_since: float | None = None
        self.moved = False
        self.next_probe: float | None = None
        self.dial_at: float | None = None
        self._book = book
        self._validation = validation
        self._journal = journal
        self._rng = rng
        self._step = 0
        self._ask_after = 0.0  # seconds of silence
        self.dialled_at: float | None = None
        self._dial_step = 0

    def is_active(self) -> bool:
        """Return whether new addresses should be probed at once."""
        return self.dial_at is not None or self.silent_since is not None

    def flags(self) -> int:
        """Return the flags for a probe that is sent now."""
        if self.silent_since is None:
            return 0
        return MOVED | SEEKING if self.moved else SEEKING

    def probe(self, candidate: Candidate, now: float) -> None:
        """Probe a candidate, telling the peer what is known here of the silence."""
        self._probe(candidate, self.flags(), now)

    def probe_if_silent(self, heard: Candidate, now: float) -> None:
        """Probe an address where the peer was heard, unless the path in use answers."""
        if self.silent_since is not None:
            self.probe(heard, now)

    # ---- a dial

    def dial(self, now: float) -> None:
        """Probe other candidates beside the dial that begins on the path in use: not by relays where that looks good.

        What is left of a connection before it, a silence or a move, is over.
        """
        self.silent_since = self.next_probe = None
        self.moved = False
        self.connectivity = Connectivity.CONNECTED
        self.dialled_at, self._dial_step, self.dial_at = now, 0, now + DIAL_GAPS_S[0]
        current = self._book.current
        looks_good = current is not None and (current.is_valid or self._book.kind(current.path) == "lan")
        self._probe_all(0, now, include_current=False, tunnels=False, relays=not looks_good)

    def dial_round(self, now: float, late: float = 0.0) -> None:
        """Probe all candidates once more, the first one too: the dial is not answered yet.

        There are as many rounds as ``DIAL_GAPS_S``, over 4.1 s. WebSockets are tried after ``TUNNEL_AFTER_S``.
        """
        if self.dialled_at is not None:
            self.dialled_at += late
        self._dial_step += 1
        self._probe_some(0, self._dial_step, late, now)
        is_last = self._dial_step >= len(DIAL_GAPS_S)
        self.dial_at = None if is_last else now + max(DIAL_GAPS_S[self._dial_step], late)

    def end_dial(self) -> None:
        """Stop the dial's probes: the handshake is done."""
        self.dialled_at = self.dial_at = None

    def probe_others(self, now: float) -> None:
        """Probe all candidates but the path in use, WebSockets too: packets are lost there, though it answers."""
        self._probe_all(self.flags(), now, include_current=False, tunnels=True)

    # ---- a silence

    def begin(self, now: float, late: float = 0.0) -> None:
        """Start the rounds, or start over with the shortest gap: an expected packet is overdue.

        The first round goes out now, the next half a ``threshold`` later, 20 ms at least. Where this process comes
        ``late`` by ``STARVED_S``, it got no CPU, and the path in use is asked first; so it is where the peer takes
        ``SLOW_S`` to answer, for it may be the one without.
        """
        if self.silent_since is None:
            self.silent_since = now
            self.connectivity = Connectivity.SEEKING
            self._ask_after = 0.0
            self._journal.emit(FellSilent())
            self._note(now, PathReason.SILENT)
        self._step = 0
        patience = self._patience
        self._probe_some(self.flags(), 1, patience if patience > SLOW_S else late, now)
        self.next_probe = now + max(PROBE_GAPS_S[1], patience / 2)

    def round(self, now: float, late: float = 0.0) -> None:
        """Probe all candidates once more.

        A newer record is asked for after 0.15 s of silence and then in doubling pauses, up to 60 s; the connection is
        suspended after 2 s.
        """
        assert self.silent_since is not None
        assert self.next_probe is not None
        if now - self.next_probe > TIMER_SLACK_S:  # time in which this process did not run is no silence of the peer
            self.silent_since += now - self.next_probe
        silent = now - self.silent_since
        self._step = min(self._step + 1, len(PROBE_GAPS_S) - 1)
        self._probe_some(self.flags(), self._step, late, now)
        if silent >= self._ask_after:
            self._ask_after = silent + min(max(silent, ASK_MIN_S), ASK_MAX_S)
            self._journal.emit(NeedRecord())
        if silent > SUSPEND_AFTER_S and self.connectivity is Connectivity.SEEKING:
            self.connectivity = Connectivity.SUSPENDED
            self._journal.emit(Suspended())
            self._note(now, PathReason.SUSPENDED)
        gap = max(PROBE_GAPS_S[self._step], late)  # in less than it was late it will not be back
        if not self.moved:
            gap = max(gap, self._patience / 4)  # nor is the answer of a peer that takes longer
        self.next_probe = now + gap * (self._rng.uniform(0.9, 1.1) if gap >= 1 else 1)

    def hurry(self, now: float) -> None:
        """Start over with the shortest gap if rounds are under way: there are new addresses."""
        if self.next_probe is not None:
            self._step = 0
            self.next_probe = now + PROBE_GAPS_S[0]

    def move(self, now: float, *, is_busy: bool) -> None:
        """Tell the peer of a move of this node from wherever it is now, until the peer answers.

        A MOVED probe goes out on the path in use, rounds to all candidates follow in 10 ms, and QUIC is nudged to send
        again what is in flight. The first of each path are padded when data is under way (``is_busy``). Does nothing
        before the first path is in use.
        """
        current = self._book.current
        if current is None:
            return
        self.moved = True
        for candidate in self._book:
            candidate.padded = 0 if is_busy else MAX_MOVED_PADDED
        if self.silent_since is None:
            self.silent_since = now
        if self.connectivity is Connectivity.CONNECTED:  # a suspended peer stays so until it answers, and is resumed
            self.connectivity = Connectivity.SEEKING
        self._step = 0
        self._ask_after = threshold(current.rtt)  # the peer is most likely where it was: it has time to answer first
        self._probe(current, MOVED, now)
        self.next_probe = now + PROBE_GAPS_S[0]
        self._journal.emit(Nudge(current.path, PathReason.MOVED))
        self._note(now, PathReason.MOVED)

    def end(self, now: float) -> None:
        """Stop the rounds: a path works.

        Emits ``Answered`` after a silence, and ``Resumed`` after a suspension.
        """
        if self.connectivity is Connectivity.SUSPENDED:
            self._journal.emit(Resumed())
            self._note(now, PathReason.RESUMED)
        self.connectivity = Connectivity.CONNECTED
        if self.silent_since is not None:
            self._journal.emit(Answered())
            self._journal.history.settled(now)
        self.silent_since = None
        self.next_probe = None
        self.moved = False
        self._step = 0

    # ---- helpers

    @property
    def _patience(self) -> float:
        """How long an answer may take on the path in use."""
        current = self._book.current
        return threshold(current.rtt if current is not None else None)

    def _note(self, now: float, reason: PathReason) -> None:
        current = self._book.current
        self._journal.note(now, reason, current.path if current is not None else None)

    def _probe_some(self, flags: int, step: int, late: float, now: float) -> None:
        """Probe all candidates, or the path in use alone in most of the rounds that come ``STARVED_S`` late.

        A process without CPU finds all peers silent at once: what it asks of all their addresses, all have to answer.
        After a move of this node the path in use is as good as any other.
        """
        current = self._book.current
        if late >= STARVED_S and step % LATE_ROUNDS and current is not None and not self.moved:
            self._probe(current, flags, now)
        else:
            since = self.silent_since if self.silent_since is not None else self.dialled_at
            is_long = since is not None and now - since >= TUNNEL_AFTER_S
            self._probe_all(flags, now, include_current=True, tunnels=is_long and late < STARVED_S)

    def _probe_all(self, flags: int, now: float, *, include_current: bool, tunnels: bool, relays: bool = True) -> None:
        left_out = tuple(kind for kind, wanted in ((ViaTunnel, tunnels), (ViaRelay, relays)) if not wanted)
        for candidate in self._book:
            if include_current if candidate is self._book.current else not isinstance(candidate.path, left_out):
                self._probe(candidate, flags, now)

    def _probe(self, candidate: Candidate, flags: int, now: float) -> None:
        pad_to = 0
        if flags & MOVED and candidate.rank == 0 and candidate.padded < MAX_MOVED_PADDED:
            candidate.padded += 1
            pad_to = BASE_MTU
        self._validation.probe(candidate, flags, now, pad_to=pad_to)
