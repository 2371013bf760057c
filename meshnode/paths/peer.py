"""The paths to one peer: its candidates, which one is in use, and what follows from each event. Sans-IO.

Joins the parts of this folder; the choice itself is in ``selection`` (docs/explanation/path-selection.md).
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from meshnode.base.address import Addr
from meshnode.base.clock import Entropy
from meshnode.base.path import Path, ViaRelay
from meshnode.base.path_reason import PathReason
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord
from meshnode.paths.candidate import NEVER, Candidate, CandidateBook, PathState
from meshnode.paths.effects import MOVED, SEEKING, Effect, Journal, Nudge, Switched, Validated
from meshnode.paths.liveness import SILENCE_MIN_S, STARVED_S, Keepalive, Watchdog
from meshnode.paths.mtu import CONFIRM_SIZE_S
from meshnode.paths.path_mtu import PathMtu
from meshnode.paths.relay_monitor import RelayMonitor
from meshnode.paths.seeking import Seeking
from meshnode.paths.selection import (
    Event,
    MoveUnconfirmed,
    PeerMoved,
    ProbeAnswered,
    RelaysCompared,
    Situation,
    choose,
)
from meshnode.paths.upgrade import Upgrade
from meshnode.paths.validation import CONFIRM_S, Probe, Validation

NEVER_DUE = float("inf")


class PeerPaths:
    """Candidates, probes and the active path of one peer. ``now`` is monotonic seconds everywhere.

    ``active`` is where packets go, None before the first dial or handshake; ``history`` has the last path changes.
    ``leaf``: this node is one, so its keepalives are rare. ``phase``: when the node's keepalives go, and
    ``idle``: the idle time of connections in seconds (``Keepalive``).
    """

    def __init__(
        self,
        peer: NodeId,
        *,
        rng: random.Random,
        entropy: Entropy,
        now: float,
        mtu_ceiling: int = 1452,
        loopback_mtu: int = 0,
        leaf: bool = False,
        phase: float = 0.0,
        idle: float = float("inf"),
    ) -> None:
        self.peer = peer
        self.active: Path | None = None
        self._journal = Journal()
        self.history = self._journal.history
        self.book = CandidateBook(mtu_ceiling, loopback_mtu)
        self.watchdog = Watchdog(now)
        self.keepalive = Keepalive(rng, rare=leaf, phase=phase, idle=idle)
        self._validation = Validation(self._journal, entropy)
        self.seeking = Seeking(self.book, self._validation, self._journal, rng)
        self.mtu = PathMtu(self._validation, self.watchdog, self._journal)
        self._upgrade = Upgrade(self.book, self._validation, self._journal, rng)
        self._monitor = RelayMonitor(self.book, self._validation)
        self._peer_moved_at = NEVER
        self.due = NEVER_DUE  # the earliest deadline but for that of silence, ``watchdog.look_at``

    # ---- candidates

    def add_candidates(self, paths: Iterable[tuple[Path, str]], now: float) -> None:
        """Learn possible paths, each with its source.

        New ones are probed at once while the peer is dialled or does not answer. Beyond ``MAX_CANDIDATES`` the oldest
        make room.
        """
        for path, source in paths:
            is_new = path not in self.book
            found = self.book.learn(path, source)
            if is_new and found is not None and self.seeking.is_active():
                self.seeking.probe(found, now)

    def peer_record(self, record: EndpointRecord, now: float) -> None:
        """Take the peer's newer record: probe addresses that are new, forget those that are gone.

        When the direct address in use is gone, the peer has moved: all that the record lists are probed and preferred,
        except behind a NAT, where a punched address is in no record.
        """
        book, current, seeking = self.book, self.book.current, self.seeking
        if record.is_leaf:
            self.keepalive.leave_to_peer()
        listed = book.take_record(record)
        left = book.is_left(listed)
        news = False
        for addr in listed:
            is_new = addr not in book
            found = book.learn(addr, "record")
            if found is None or current is None or found is current:
                continue
            news |= is_new
            if left:
                found.claimed = now
            if is_new or left or seeking.next_probe is not None:
                seeking.probe(found, now)
        if news:
            self._upgrade.again(self.book.current, now)
        seeking.hurry(now)

    def introduced(self, addr: Addr, at: float, now: float) -> None:
        """Take the observed address of the peer from a relay that both use.

        Both ends probe from ``at`` on, or at once when that is past. An address that no other node can have is ignored.
        """
        if self.book.here.believes(addr):
            self.book.learn(addr, "introduced")
            self._upgrade.join(max(at, now))

    # ---- the beginning of a connection

    def begin(self, path: Path, now: float) -> None:
        """Dial: the first flight goes by ``path``; all other candidates are probed beside it."""
        current = self.book.learn(path, "dial")
        if current is None:
            return
        self.book.current, self.active = current, path
        self._validation.confirm_by = self.keepalive.at = self._upgrade.at = None
        self._monitor.end()
        self.seeking.dial(now)
        self._journal.note(now, PathReason.DIAL, path)

    def accept(self, path: Path, now: float, *, round_trip: bool = True) -> None:
        """Use ``path``: the handshake with the peer is done by it.

        ``round_trip``: the whole of it went this way, which validates the address (RFC 9000 section 8.1); else our own
        probe must. The datagram size starts from the base again, as the engine of a new connection does.
        """
        current = self.book.learn(path, "peer") or self.book.current
        if current is None:
            return
        self.seeking.end_dial()
        if round_trip:
            current.went_round_trip(now)
        current.last_heard = now
        old = self.active
        self.mtu.reset()
        self._use(current, now)
        self._settle(now)
        self._upgrade.again(current, now)  # both ends are ready now: an introduction before that found only one
        self._journal.emit(Switched(old, current.path, PathReason.ACCEPTED, False))
        self._journal.note(now, PathReason.ACCEPTED, current.path)
        if not current.is_valid:
            self._confirm(current, now)

    # ---- packets and probes

    def on_received(self, src: Path, newest: bool, now: float, *, proven: bool = False) -> None:
        """Take note of a QUIC datagram.

        ``newest``: it has the highest packet number so far, so its source is the peer's own (RFC 9000 section 9.3). The
        source of any other may be spoofed, and is ignored. ``proven``: it shows that a dial's first flight arrived
        where it was sent, which validates the path in use: an answer by a relay is no reason to leave it.
        """
        current = self.book.current
        if current is not None and src == current.path:
            if proven:
                current.went_round_trip(now)
            if newest:
                current.last_heard = now
                if self.seeking.silent_since is not None and not self.seeking.moved and not current.is_too_small:
                    self._settle(now)
            return
        if newest:
            self._on_other_source(src, now)

    def _on_other_source(self, src: Path, now: float) -> None:
        known = self.book.get(src)
        if known is not None and known.is_valid:
            known.last_heard = now
            self.seeking.probe_if_silent(known, now)
            current = self.book.current
            if current is not None and known.rank > current.rank and self.watchdog.in_flight:
                current.mtu.doubt(now)  # the peer may have left the path in use because it is too small
                self.due = min(self.due, now)
            return
        found = self.book.learn(src, "packet")
        if found is not None:
            self._validation.claim(found, self.book.current, self.seeking.silent_since is not None, now)
            if found.state is not PathState.PROBING:
                self._validation.probe(found, 0, now)

    def on_ping(self, src: Path, flags: int, now: float) -> None:
        """Take a sealed PING of the peer about the connection with it.

        ``flags`` are ``MOVED`` and ``SEEKING``. MOVED from another address switches at once; our own probe must be
        answered there within ``CONFIRM_S``.
        """
        found = self.book.learn(src, "ping")
        if found is None:
            return
        is_silent = self.seeking.silent_since is not None
        if found is not self.book.current or not self.watchdog.awaits_answer:
            found.last_heard = max(found.last_heard, now)  # else it says nothing of the way to the peer
        if found is self.book.current:
            if flags & MOVED:
                self._peer_moved_at = now
            if flags & MOVED and not found.is_valid:
                self.seeking.probe(found, now)  # the first one may have been lost
            elif flags & SEEKING and not is_silent and not self.watchdog.awaits_answer:
                self.watchdog.expect(now)  # nothing that goes there may arrive, and this node has had nothing to say
                self._validation.probe(found, 0, now)
            else:
                self.seeking.probe_if_silent(found, now)
            return
        if flags & MOVED and self._decide(PeerMoved(found), now):
            self._peer_moved_at = now
            if found.is_valid:
                self._validation.probe(found, 0, now)
            else:
                self._confirm(found, now)
            return
        if flags & (SEEKING | MOVED):
            self._validation.claim(found, self.book.current, is_silent, now)
            self.seeking.probe(found, now)
        elif not found.is_valid or is_silent:
            self.seeking.probe(found, now)

    def _confirm(self, current: Candidate, now: float) -> None:
        """Probe the path in use, which is not validated: without an answer it counts as failed.

        It has ``CONFIRM_S``, or three round trips of the path before it.
        """
        self._validation.probe(current, 0, now)
        last = self.book.previous
        rtt = last.rtt if last is not None and last.rtt is not None else 0.0
        self._validation.confirm_by = now + max(CONFIRM_S, 3 * rtt)

    def on_pong(self, tx: bytes, now: float) -> Probe | None:
        """Take a PONG; return the probe that it answers.

        None when ``tx`` is unknown: answered already, too old, or another peer's. A probe's answer validates its
        address, and may change the path in use.
        """
        probe = self._validation.take(tx)
        if probe is None:
            return None
        found = self.book.get(probe.path)
        if found is None:
            return probe
        was_valid = found.is_valid
        is_current = found is self.book.current
        found.measured(probe.sent, now)
        self._monitor.answered(tx, found)
        if probe.pad_to:
            self.mtu.answered(found, probe.pad_to, now, is_current=is_current)
        if is_current:
            self._on_current_answered(found, was_valid, now)
        elif self._decide(ProbeAnswered(found, probe.sent), now):
            self._settle(now)
        return probe

    def unsent(self, tx: bytes) -> None:
        """Take note that a probe did not leave: its address has not earned it yet, so the next reason may probe it."""
        probe = self._validation.take(tx)
        found = self.book.get(probe.path) if probe is not None else None
        if found is not None:
            found.probes -= 1
            if found.state is PathState.PROBING and not found.probes:
                found.state = PathState.UNKNOWN

    def _on_current_answered(self, current: Candidate, was_valid: bool, now: float) -> None:
        self._validation.confirm_by = None
        if not was_valid:
            self._journal.emit(Validated(current.path))
        current.mtu.start(now)
        if self.seeking.silent_since is not None and not current.is_too_small:
            likely_lost = self.seeking.moved or now - self.seeking.silent_since > SILENCE_MIN_S
            self._settle(now)
            if likely_lost:
                self._journal.emit(Nudge(current.path, PathReason.ANSWERED))
        self.watchdog.answered()

    def local_change(self, now: float) -> None:
        """Tell the peer of a change of this node's own addresses.

        PINGs with MOVED go out at 0, 10, 30, 70, 150 ms and so on until the peer answers, as from any address that this
        node has then. While data is under way, the first are as long as a packet: the peer owes the new address nothing
        yet, and may send three bytes for each of theirs.
        """
        for candidate in self.book:
            candidate.mtu.forget(in_use=candidate is self.book.current)
        self.seeking.move(now, is_busy=self.watchdog.is_busy(now) or self.seeking.dial_at is not None)
        self._upgrade.again(self.book.current, now)

    # ---- hints of the connection above

    def set_in_flight(self, count: int, now: float) -> None:
        """Set how many bytes are sent and unacknowledged.

        While there are any, a silence is suspicious, and the datagram size in use is confirmed once a second.
        """
        watchdog = self.watchdog
        goes_on = watchdog.in_flight
        if count and goes_on:
            watchdog.in_flight = count
        else:
            watchdog.set_in_flight(count, now)
        current = self.book.current
        if (
            count
            and current is not None
            and ((mtu := current.mtu).size > mtu.floor or (mtu.carries and not mtu.always))
        ):
            at = mtu.confirm_at
            if at is None or (at <= now and not goes_on):  # nothing was under way when it was due
                mtu.confirm_at = now + CONFIRM_SIZE_S

    def on_answer(self, now: float) -> None:
        """Take note of an answer on the active path to what ``watchdog.expect`` was told of."""
        self.watchdog.answered()
        if self.book.current is not None:
            self.book.current.last_heard = now

    # ---- time

    def next_deadline(self) -> float | None:
        """Return when ``tick`` has something to do: the earlier of ``due`` and ``watchdog.look_at``, set here."""
        current, seeking, first = self.book.current, self.seeking, NEVER_DUE
        self.watchdog.look_at = self.due = NEVER_DUE
        if current is None:
            return None
        for at in (
            seeking.next_probe,
            self._validation.confirm_by,
            current.mtu.at,
            current.mtu.confirm_at if self.watchdog.in_flight else None,
            self.keepalive.at,
            seeking.dial_at,
            self._upgrade.at,
            self._monitor.at,
        ):
            if at is not None and at < first:
                first = at
        self.due = first
        silence = self._suspicious_at()
        if silence is not None:
            self.watchdog.look_at = silence
            first = min(first, silence)
        return first if first < NEVER_DUE else None

    def _suspicious_at(self) -> float | None:
        """Return when silence becomes suspicious; None while nothing is expected or other paths are probed already."""
        current = self.book.current
        if current is None or self.seeking.silent_since is not None or self.keepalive.at is None:
            return None
        return self.watchdog.suspicious_at(current.last_heard, current.rtt)

    def tick(self, now: float, late: float = 0.0) -> None:
        """Let due timers fire; afterwards ``next_deadline`` is None or later than ``now``.

        ``late``: by how many seconds this process comes late, for it had no CPU.
        """
        current = self.book.current
        if current is None:
            return
        self._tick_silence(current, now, late)
        if self.mtu.tick(current, now):
            self.seeking.probe_others(now)
        if _is_due(self._upgrade.at, now):
            self._upgrade.tick(current, now)
        if _is_due(self._monitor.at, now):
            self._compare_relays(current, now)
        if _is_due(self.keepalive.at, now):
            self.keepalive.renew(now)
            if now - current.last_heard > self.keepalive.every_s * 0.5 and self.seeking.silent_since is None:
                self.watchdog.expect(now)
                self._validation.probe(current, 0, now)

    def _tick_silence(self, current: Candidate, now: float, late: float) -> None:
        confirm_by = self._validation.confirm_by
        if confirm_by is not None and now - confirm_by > STARVED_S:  # the answer may have come, and be unread
            self._validation.confirm_by = now + CONFIRM_S
        elif _is_due(confirm_by, now):
            self._validation.confirm_by = None
            if not current.is_valid:
                current.state = PathState.FAILED
                current.failures += 1
                self._decide(MoveUnconfirmed(), now)
                self.seeking.begin(now)
        due = self._suspicious_at()
        if due is not None and due <= now and self.watchdog.is_real(due, current.last_heard, now, late):
            if self.watchdog.in_flight:
                self.mtu.fall_back(current, now)
            self.seeking.begin(now, late)
        if _is_due(self.seeking.next_probe, now):
            self.seeking.round(now, late)
        if _is_due(self.seeking.dial_at, now):
            self.seeking.dial_round(now, late)

    def _compare_relays(self, current: Candidate, now: float) -> None:
        """Probe other relays beside the one in use, so that one that drops, delays or repeats datagrams is left."""
        others, busy = self.book.relays(), self.watchdog.is_busy(now)
        self._monitor.tick(current, busy and bool(others), now)
        if not busy or not isinstance(current.path, ViaRelay) or self.seeking.silent_since is not None:
            return
        if self._decide(RelaysCompared(tuple(others)), now):
            self._settle(now)
        else:
            self._monitor.probe(current, others, now)

    # ---- the path in use

    def _decide(self, event: Event, now: float) -> bool:
        """Carry out what ``choose`` makes of the event; True when another path is in use now."""
        book, old = self.book, self.book.current
        is_silent = self.seeking.silent_since is not None
        situation = Situation(
            now, old, book.previous, is_silent, self._peer_moved_at, book.here.networks, self.seeking.dialled_at
        )
        decision = choose(event, situation)
        if decision.validate is not None:
            self.mtu.validate(decision.validate, now)
        if decision.to is None or decision.reason is None or old is None:
            return False
        if old.is_valid:
            book.previous = old
        failed = (is_silent and not self.seeking.moved) or decision.reason is PathReason.TOO_SMALL
        if failed and book.is_better(old, decision.to):
            old.fell_silent(now)
        self._use(decision.to, now)
        if self.seeking.dialled_at is not None:  # the listener answers where the first flight came from, until it moves
            self._validation.probe(decision.to, MOVED, now)
        self._journal.emit(Switched(old.path, decision.to.path, decision.reason, decision.failed))
        self._journal.note(now, decision.reason, decision.to.path)
        return True

    def _use(self, current: Candidate, now: float) -> None:
        """Send everything this way from now on."""
        old = self.book.current
        if old is not None and old is not current:
            old.mtu.stop()
        self.book.current, self.active = current, current.path
        self.mtu.use(current, now)
        if current.rank == 0:
            self._upgrade.again(current, now)
            self._monitor.end()
            return
        self._upgrade.begin(current, now)
        if isinstance(current.path, ViaRelay):
            self._monitor.begin(now)

    def _settle(self, now: float) -> None:
        """Stop probing other paths: the one in use works."""
        self.seeking.end(now)
        self.watchdog.restart(now)
        self.keepalive.renew(now)

    def take_effects(self) -> list[Effect]:
        """Return what the stack is to do, in order."""
        return self._journal.take() if self._journal.effects else []


def _is_due(at: float | None, now: float) -> bool:
    return at is not None and at <= now


def look_for_silence_at(paths: PeerPaths, now: float) -> float:
    """Return ``watchdog.look_at``, which what was sent or has come at ``now`` may have moved.

    Before ``SILENCE_MIN_S`` no silence is suspicious, so while something is expected the exact time is asked for that
    often at most, and not for each packet. Nothing is asked for any more when all that was expected has come.
    """
    watchdog = paths.watchdog
    if watchdog.in_flight or watchdog.fired_at < watchdog.data_at or watchdog.expecting_since is not None:
        watchdog.look_at = min(watchdog.look_at, now + SILENCE_MIN_S)
    else:
        watchdog.look_at = NEVER_DUE
    return watchdog.look_at
