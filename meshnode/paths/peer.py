"""The addresses of one peer and the choice among them. Sans-IO (docs/explanation/path-selection.md).

Each side decides only its own sending path. An address is used without a byte budget only after our own
sealed probe went round trip on it, so that a spoofed source moves nobody's traffic; a fresh sealed MOVED
from the peer earns one initial window (RFC 9002 section 7.2) in advance, which halves the gap of a move.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable

from meshnode.base.address import Addr, is_dialable
from meshnode.base.bounded import BoundedDict
from meshnode.base.clock import Entropy
from meshnode.base.limits import BASE_MTU, INITIAL_WINDOW, KEEPALIVE_S, MAX_CANDIDATES, MAX_PATH_HISTORY, MAX_PROBES_OUT
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointKind, EndpointRecord
from meshnode.nat.local_networks import LocalNetworks, on_networks
from meshnode.paths.candidate import Candidate, Connectivity, PathState
from meshnode.paths.effects import (
    Answered,
    Effect,
    FellSilent,
    MtuChanged,
    NeedIntroduction,
    NeedRecord,
    Resumed,
    SendProbe,
    Suspended,
    Switched,
    Validated,
)
from meshnode.paths.liveness import LATE_S, SILENCE_MIN_S, Silence, threshold
from meshnode.paths.mtu import MtuSearch
from meshnode.paths.relay_monitor import Monitor
from meshnode.paths.upgrade import Upgrade

MOVED, SEEKING = 1, 2  # PING flags
BURST = (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.5, 1.0, 2.0, 5.0)  # gaps between probes while nothing answers
SUSPEND_AFTER_S = 2.0
ASK_MIN_S, ASK_MAX_S = 0.15, 60.0  # where is it? asked in doubling pauses: it may be dead for good
CONFIRM_S = 1.0  # an address that a MOVED brought must answer our probe within this
SAME_MOVE_S = 0.3  # MOVED probes of one burst arrive from several addresses: the first one wins
HYSTERESIS_RATIO, HYSTERESIS_S = 0.8, 0.005
DIAL_GAPS = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0)  # between probes of all candidates while a dial is not answered
TUNNEL_AFTER_S = 0.25  # a WebSocket costs a TCP and a TLS handshake: only when nothing else has answered


class PeerPaths:
    """Candidates, probes and the active path of one peer; ``now`` is monotonic seconds."""

    def __init__(
        self, peer: NodeId, *, rng: random.Random, entropy: Entropy, now: float, mtu_ceiling: int = 1452
    ) -> None:
        self.peer = peer
        self.active: Addr | None = None
        self.connectivity = Connectivity.CONNECTED
        self.history: deque[tuple[float, str, Addr | None]] = deque(maxlen=MAX_PATH_HISTORY)
        self._rng = rng
        self._entropy = entropy
        self._ceiling = mtu_ceiling
        self._candidates: dict[Addr, Candidate] = {}
        self._current: Candidate | None = None
        self._previous: Candidate | None = None
        self._probes: BoundedDict[bytes, tuple[Addr, float, int]] = BoundedDict(MAX_PROBES_OUT)
        self._effects: list[Effect] = []
        self._here = LocalNetworks()
        self._credit = 0
        self._moved = False
        self._step = 0
        self._next_probe: float | None = None
        self._silent_since: float | None = None
        self._confirm_by: float | None = None
        self._moved_from = float("-inf")
        self._silence = Silence(now)
        self._ask_at = 0.0
        self._keepalive_at: float | None = None
        self._mtu = BASE_MTU
        self._dialled: float | None = None
        self._dial_step = 0
        self._dial_at: float | None = None
        self._behind_nat = False
        self._upgrade = Upgrade(rng)
        self._monitor = Monitor()

    # ---- candidates

    def set_here(self, here: LocalNetworks) -> None:
        """Tell which networks this host is on, and which addresses are its own."""
        self._here = here

    def path_kind(self, addr: Addr) -> str:
        """``relay``; ``lan`` when the address is on one of our networks or loopback; else ``direct``."""
        if not addr.is_udp:
            return "relay" if addr.is_relayed else "direct"
        return "lan" if on_networks(addr, self._here.networks) else "direct"

    def addresses(self) -> list[Addr]:
        """All candidate addresses."""
        return list(self._candidates)

    def candidates(self) -> list[Candidate]:
        """All candidates, for people."""
        return list(self._candidates.values())

    def add_candidates(self, addrs: Iterable[tuple[Addr, str]], now: float) -> None:
        """Learn of possible addresses and where each came from; what is new is probed when we are looking."""
        for addr, source in addrs:
            fresh = addr not in self._candidates
            found = self._candidate(addr, source)
            if fresh and found is not None and (self._dial_at is not None or self._silent_since is not None):
                self._probe(found, self._flags(), now)

    def drop_candidate(self, addr: Addr) -> None:
        """An address is of no use any more (a relay that we have left)."""
        if addr != self.active:
            self._candidates.pop(addr, None)

    def _candidate(self, addr: Addr, source: str) -> Candidate | None:
        found = self._candidates.get(addr)
        if found is not None or (addr.is_udp and not is_dialable(addr)):
            return found
        if len(self._candidates) >= MAX_CANDIDATES:
            for old, candidate in list(self._candidates.items()):
                if candidate is not self._current and candidate is not self._previous:
                    del self._candidates[old]  # the oldest goes: a liar can only push out his own
                    break
            else:
                return None
        found = self._candidates[addr] = Candidate(addr, source, MtuSearch(self._ceiling if addr.is_udp else 0))
        return found

    def peer_record(self, record: EndpointRecord, now: float) -> None:
        """The peer says where it is: probe what is new, forget what is gone."""
        listed = {e.addr: None for e in record.endpoints if self._here.believes(e.addr)}
        self._behind_nat = any(endpoint.kind is EndpointKind.REFLEXIVE for endpoint in record.endpoints)
        kept = (self._current, self._previous)  # what may be in use: its answers must find their candidate
        for addr, candidate in list(self._candidates.items()):
            if candidate.source == "record" and addr not in listed and candidate not in kept:
                del self._candidates[addr]
        current = self._current
        # a punched address is the peer's NAT's, and in no record
        left = current is not None and current.rank == 0 and current.addr not in listed and not self._behind_nat
        news = False
        for addr in listed:
            fresh = addr not in self._candidates
            found = self._candidate(addr, "record")
            if found is None or current is None or found is current:
                continue
            news = news or fresh
            if left:
                found.claimed = now
            if fresh or left or self._next_probe is not None:
                self._probe(found, self._flags(), now)
        if news:
            self._upgrade.again(now)
        if self._next_probe is not None:
            self._step = 0
            self._next_probe = now + BURST[0]

    def best_guess(self) -> Addr | None:
        """Where to try first: validated; our own networks; a relay, when the peer is behind a NAT; its own order."""

        def rank(candidate: Candidate) -> tuple[bool, bool, bool, int]:
            lan = candidate.addr.is_udp and self.path_kind(candidate.addr) == "lan"
            first = candidate.addr.is_relayed if self._behind_nat else candidate.rank == 0
            return candidate.state is not PathState.VALIDATED, not lan, not first, candidate.rank

        best = min(self._candidates.values(), key=rank, default=None)
        return best.addr if best is not None else None

    # ---- beginning

    def begin(self, addr: Addr, now: float) -> None:
        """Dialler: the first flight goes to ``addr``; all other candidates are probed beside it."""
        current = self._candidate(addr, "dial")
        if current is None:
            return
        self._current, self.active = current, addr
        self._credit = INITIAL_WINDOW  # a record signed by the peer, or a configured address, names it
        self._dialled, self._dial_step, self._dial_at = now, 0, now + DIAL_GAPS[0]
        self._probe_all(0, now, include_active=False)
        self._note(now, "dial")

    def _dial_again(self, now: float) -> None:
        """The dial is not answered yet: probe everything once more, the first address too."""
        self._probe_all(0, now, include_active=True)
        self._dial_step += 1
        last = self._dial_step >= len(DIAL_GAPS)
        self._dial_at = None if last else now + DIAL_GAPS[self._dial_step]

    def accept(self, addr: Addr, now: float) -> None:
        """The handshake with a peer at ``addr`` is done: QUIC has validated the address."""
        current = self._candidate(addr, "peer") or self._current
        if current is None:
            return
        self._dialled = self._dial_at = None
        current.state = PathState.VALIDATED
        current.last_heard = now
        old, self._current, self.active = self.active, current, current.addr
        self._mtu = BASE_MTU  # a new connection's engine begins there, whatever the last one had reached
        self._settle(now)
        self._use(current, now)
        self._upgrade.again(now)  # both ends are ready now: an introduction before that found only one of them
        self._effects.append(Switched(old, current.addr, "accepted", False))
        self._note(now, "accepted")

    # ---- what happens

    def on_received(self, src: Addr, size: int, newest: bool, now: float) -> None:
        """An authentic QUIC datagram (or, when not ``newest``, perhaps only a claimed one) came from ``src``."""
        current = self._current
        if current is not None and src == current.addr:
            if current.state is not PathState.VALIDATED:
                self._credit += 3 * size
            if newest:
                current.last_heard = now
                if self._silent_since is not None and not self._moved:
                    self._settle(now)
            return
        if not newest:
            return
        known = self._candidates.get(src)
        if known is not None and known.state is PathState.VALIDATED:
            known.last_heard = now
            if self._silent_since is not None:
                self._probe(known, self._flags(), now)
            return
        found = self._candidate(src, "packet")
        if found is not None:
            self._claim(found, now)
            if found.state is not PathState.PROBING:
                self._probe(found, 0, now)

    def _claim(self, found: Candidate, now: float) -> None:
        """The peer gives a reason to go this way. For a detour it counts only if our own way does not answer."""
        current = self._current
        if current is None or found.rank <= current.rank:
            found.claimed = now
            return
        if found.claimed <= current.answered:
            found.claimed = now
        if self._silent_since is None:
            self._probe(current, 0, now)

    @staticmethod
    def _claimed(found: Candidate, current: Candidate, sent: float, now: float) -> bool:
        """A probe sent at ``sent`` to ``found`` came back: does the peer want us there?"""
        if found.rank > current.rank:  # our own way was asked when the claim came: it has had its time to answer
            had_time = now - found.claimed >= (current.rtt or 0.0)
            return found.claimed > current.answered and sent >= found.claimed and had_time
        return found.claimed > current.last_heard

    def on_ping(self, src: Addr, flags: int, now: float) -> None:
        """A sealed PING of the peer about our connection came from ``src``."""
        found = self._candidate(src, "ping")
        if found is None:
            return
        found.last_heard = max(found.last_heard, now)
        if found is self._current:
            if flags & MOVED:
                self._moved_from = now
            if self._silent_since is not None:
                self._probe(found, self._flags(), now)
            return
        if flags & MOVED and now - self._moved_from > SAME_MOVE_S:
            self._moved_from = now
            self._credit = INITIAL_WINDOW
            self._switch(found, "peer moved", True, now)
            self._probe(found, 0, now)
            if found.state is not PathState.VALIDATED:
                self._confirm_by = now + CONFIRM_S
            return
        if flags & (SEEKING | MOVED):
            self._claim(found, now)
        if found.state is not PathState.VALIDATED or flags & (SEEKING | MOVED) or self._silent_since is not None:
            self._probe(found, self._flags(), now)

    def on_pong(self, tx: bytes, src: Addr, now: float, size: int) -> float | None:
        """A PONG came; returns when the probe of ours was sent that it answers, None when there is none."""
        probe = self._probes.pop(tx, None)
        if probe is None:
            return None
        addr, sent, padded = probe
        found = self._candidates.get(addr)
        if found is None:
            return sent
        fresh = found.state is not PathState.VALIDATED
        found.measured(sent, now)
        self._monitor.answered(tx, found)
        current = self._current
        if padded and found.mtu.answered(padded, now) and found is current:
            self._set_mtu(found.mtu.size)
        if found is current:
            self._answered(found, fresh, now)
        elif current is None:
            pass
        elif self._silent_since is not None and current.last_heard < sent:
            self._switch(found, "answered", True, now)
            self._settle(now)
        elif self._claimed(found, current, sent, now):
            self._switch(found, "validated", True, now)
            self._settle(now)
        elif current.state is not PathState.VALIDATED and self._credit >= 0:
            if current.last_heard == float("-inf"):
                self._switch(found, "validated", True, now)
                self._settle(now)
        elif found.rank != current.rank:
            if found.rank < current.rank and found.trusted(sent, now):
                self._switch(found, "better kind", False, now)
                self._settle(now)
        elif self._nearer(found, current):
            self._switch(found, "nearer", False, now)
            self._settle(now)
        elif self._better(found, current):
            self._switch(found, "faster", False, now)
            self._settle(now)
        return sent

    def _answered(self, current: Candidate, fresh: bool, now: float) -> None:
        self._confirm_by = None
        if fresh:
            self._effects.append(Validated(current.addr))
            current.mtu.start(now)
        if self._silent_since is not None:
            nudge = self._moved or now - self._silent_since > SILENCE_MIN_S
            self._settle(now)
            if nudge:
                self._effects.append(Switched(current.addr, current.addr, "answered", True))
        self._silence.answered()

    def _nearer(self, found: Candidate, current: Candidate) -> bool:
        """On our own network, where the other way leads out and, by a NAT that hairpins, in again."""
        near = self.path_kind(found.addr) == "lan" and self.path_kind(current.addr) != "lan"
        return near and (current.rtt is None or found.rtt is None or found.rtt < current.rtt + HYSTERESIS_S)

    def _better(self, found: Candidate, current: Candidate) -> bool:
        if found.rtt is None or current.rtt is None or found.samples < 2 or current.samples < 2:
            return False
        return found.rtt < current.rtt * HYSTERESIS_RATIO and found.rtt < current.rtt - HYSTERESIS_S

    def local_change(self, now: float) -> None:
        """Our own addresses changed: tell the peer from wherever we are now, until it answers."""
        if self._current is None:
            return
        self._moved = True
        if self._silent_since is None:
            self._silent_since = now
        if (
            self.connectivity is Connectivity.CONNECTED
        ):  # a suspended peer stays so until it answers: then it is resumed
            self.connectivity = Connectivity.SEEKING
        self._step = 0
        self._ask_at = 0.0
        self._probe(self._current, MOVED, now)
        self._next_probe = now + BURST[0]
        self._effects.append(Switched(self._current.addr, self._current.addr, "moved", True))
        self._upgrade.again(now)
        self._note(now, "moved")

    def punch(self, at: float) -> None:
        """The peer begins a round of probes at ``at``: so do we, when the active path is a detour."""
        self._upgrade.join(at)

    def introduced(self, addr: Addr, at: float, now: float) -> None:
        """A relay that both of us use sees the peer as ``addr``, and has told the peer the same of us."""
        if not self._here.believes(addr):
            return
        self._candidate(addr, "introduced")
        self.punch(max(at, now))

    def on_duplicate(self, addr: Addr) -> None:
        """A sealed datagram came twice by this way."""
        found = self._candidates.get(addr)
        if found is not None and found.addr.is_relayed:
            found.fates.append(False)

    # ---- hints of the connection above

    def set_in_flight(self, count: int, now: float) -> None:
        """So many bytes are sent and unacknowledged."""
        self._silence.flight(count, now)
        if count and self._current is not None:
            self._current.mtu.busy(now)

    def note_sent(self, size: int, now: float) -> None:
        """So many bytes went to the active address."""
        current = self._current
        if current is not None and current.state is not PathState.VALIDATED:
            self._credit -= size

    def note_stream_data(self, now: float) -> None:
        """The application's data arrived; more is to be expected."""
        self._silence.data(now)

    def expect_answer(self, now: float) -> None:
        """Something that the peer will answer was just sent on the active path."""
        self._silence.ask(now)

    def on_answer(self, now: float) -> None:
        """It was answered."""
        self._silence.answered()
        if self._current is not None:
            self._current.last_heard = now

    def budget(self, now: float) -> int | None:
        """Bytes that may go to the active address now; None when it is validated."""
        current = self._current
        if current is None:
            return 0
        return None if current.state is PathState.VALIDATED else max(0, self._credit)

    # ---- time

    def next_deadline(self) -> float | None:
        """When ``tick`` has something to do."""
        if self._current is None:
            return None
        first = self._watchdog()
        mtu_at = self._current.mtu.at
        for at in (
            self._next_probe,
            self._confirm_by,
            mtu_at,
            self._current.mtu.confirm_at,
            self._keepalive_at,
            self._dial_at,
            self._upgrade.at,
            self._monitor.at,
        ):
            if at is not None and (first is None or at < first):
                first = at
        return first

    def _watchdog(self) -> float | None:
        """When silence becomes suspicious; None while nothing is expected or we are seeking already."""
        current = self._current
        if current is None or self._silent_since is not None or self._keepalive_at is None:
            return None
        return self._silence.suspicious_at(current.last_heard, current.rtt)

    def tick(self, now: float) -> None:
        """Let due timers fire; afterwards ``next_deadline`` is None or later than ``now``."""
        current = self._current
        if current is None:
            return
        if self._confirm_by is not None and self._confirm_by <= now:
            self._confirm_by = None
            if current.state is not PathState.VALIDATED:
                current.state = PathState.FAILED
                current.failures += 1
                if self._previous is not None and self._previous.state is PathState.VALIDATED:
                    self._switch(self._previous, "unconfirmed", True, now)
                self._seek(now)
        watchdog = self._watchdog()
        if watchdog is not None and watchdog <= now and self._silence.is_real(watchdog, current.last_heard, now):
            if self._mtu > BASE_MTU and self._silence.in_flight:
                current.mtu.black_hole(now)
                self._set_mtu(BASE_MTU)
            self._seek(now)
        if self._next_probe is not None and self._next_probe <= now:
            self._seek_step(now)
        if self._dial_at is not None and self._dial_at <= now:
            self._dial_again(now)
        if current.mtu.at is not None and current.mtu.at <= now:
            size = current.mtu.probe(current.rtt or 0.1, now)
            if size is not None:
                self._probe(current, 0, now, pad_to=size)
        if current.mtu.confirm_at is not None and current.mtu.confirm_at <= now:
            self._confirm_size(current, now)
        if self._upgrade.at is not None and self._upgrade.at <= now:
            self._upgrade_step(current, now)
        if self._monitor.at is not None and self._monitor.at <= now:
            self._monitor_step(current, now)
        if self._keepalive_at is not None and self._keepalive_at <= now:
            self._keepalive_at = now + KEEPALIVE_S * self._rng.uniform(0.9, 1.1)
            if now - current.last_heard > KEEPALIVE_S * 0.5 and self._silent_since is None:
                self._silence.ask(now)
                self._probe(current, 0, now)

    def _confirm_size(self, current: Candidate, now: float) -> None:
        if not self._silence.in_flight:
            current.mtu.confirm_at = None
        elif current.mtu.confirm(current.rtt or 0.1, now):
            self._probe(current, 0, now, pad_to=current.mtu.size)
        else:
            current.mtu.black_hole(now)
            self._set_mtu(BASE_MTU)
            self._effects.append(Switched(current.addr, current.addr, "black hole", True))
            self._note(now, "black hole")

    def _seek(self, now: float) -> None:
        if self._silent_since is None:
            self._silent_since = now
            self.connectivity = Connectivity.SEEKING
            self._ask_at = 0.0
            self._effects.append(FellSilent())
            self._note(now, "silent")
        self._step = 0
        self._probe_all(self._flags(), now, include_active=True)
        rtt = self._current.rtt if self._current is not None else None
        self._next_probe = now + max(BURST[1], threshold(rtt) / 2)

    def _seek_step(self, now: float) -> None:
        assert self._silent_since is not None
        assert self._next_probe is not None
        if now - self._next_probe > LATE_S:  # time in which we did not run is no silence of the peer
            self._silent_since += now - self._next_probe
        silent = now - self._silent_since
        self._step = min(self._step + 1, len(BURST) - 1)
        self._probe_all(self._flags(), now, include_active=True)
        if silent >= self._ask_at:
            self._ask_at = silent + min(max(silent, ASK_MIN_S), ASK_MAX_S)
            self._effects.append(NeedRecord())
        if silent > SUSPEND_AFTER_S and self.connectivity is Connectivity.SEEKING:
            self.connectivity = Connectivity.SUSPENDED
            self._effects.append(Suspended())
            self._note(now, "suspended")
        gap = BURST[self._step]
        self._next_probe = now + gap * (self._rng.uniform(0.9, 1.1) if gap >= 1 else 1)

    def _settle(self, now: float) -> None:
        """Something answers: stop seeking."""
        if self.connectivity is Connectivity.SUSPENDED:
            self._effects.append(Resumed())
            self._note(now, "resumed")
        self.connectivity = Connectivity.CONNECTED
        if self._silent_since is not None:
            self._effects.append(Answered())
        self._silent_since = None
        self._next_probe = None
        self._silence.settled(now)
        self._moved = False
        self._step = 0
        self._keepalive_at = now + KEEPALIVE_S * self._rng.uniform(0.9, 1.1)

    # ---- better kinds of path, and better ones of the same kind

    def _upgrade_step(self, current: Candidate, now: float) -> None:
        if current.rank == 0:
            self._upgrade.end()
            return
        if self._upgrade.step(now) and current.addr.is_relayed:
            self._effects.append(NeedIntroduction())
        for candidate in list(self._candidates.values()):
            if candidate.rank < current.rank and now >= candidate.trusted_at:
                self._probe(candidate, 0, now)

    def _monitor_step(self, current: Candidate, now: float) -> None:
        """On a relay: compare it with the others, so that one that drops, delays or repeats is left."""
        busy = self._silence.busy(now)
        others = [c for c in self._candidates.values() if c.addr.is_relayed and c is not current]
        self._monitor.step(current.addr.is_relayed, busy and bool(others), now, self._candidates)
        if not busy or not current.addr.is_relayed or self._silent_since is not None:
            return
        for other in others:
            if other.state is PathState.VALIDATED and self._monitor.prefers(other, current):
                self._switch(other, "fewer losses", True, now)
                self._settle(now)
                return
        for candidate in (current, *others[:2]):
            self._monitor.sent(self._probe(candidate, 0, now), candidate.addr, now)

    def _set_mtu(self, size: int) -> None:
        if size != self._mtu:
            self._mtu = size
            self._effects.append(MtuChanged(size))

    def _use(self, current: Candidate, now: float) -> None:
        """This path is in use from now on."""
        self._set_mtu(current.mtu.size if current.state is PathState.VALIDATED else BASE_MTU)
        if current.state is PathState.VALIDATED:
            current.mtu.start(now)
        if current.rank == 0:
            self._upgrade.end()
            self._monitor.end()
        else:
            self._upgrade.begin(now)
            if current.addr.is_relayed:
                self._monitor.begin(now)

    # ---- helpers

    def _flags(self) -> int:
        if self._silent_since is None:
            return 0
        return MOVED | SEEKING if self._moved else SEEKING

    def _switch(self, to: Candidate, why: str, nudge: bool, now: float) -> None:
        old = self._current
        if to is old:
            return
        if old is not None:
            old.mtu.stop()
            if old.state is PathState.VALIDATED:
                self._previous = old
            if self._silent_since is not None and not self._moved and old.rank < to.rank:
                old.fell_silent(now)
        self._current, self.active = to, to.addr
        self._use(to, now)
        self._effects.append(Switched(old.addr if old is not None else None, to.addr, why, nudge))
        self._note(now, why)

    def _probe_all(self, flags: int, now: float, *, include_active: bool) -> None:
        since = self._silent_since if self._silent_since is not None else self._dialled
        patient = since is None or now - since < TUNNEL_AFTER_S
        for candidate in list(self._candidates.values()):
            if candidate.addr.is_tunnel and patient and candidate is not self._current:
                continue
            if include_active or candidate is not self._current:
                self._probe(candidate, flags, now)

    def _probe(self, candidate: Candidate, flags: int, now: float, pad_to: int = 0) -> bytes:
        tx = self._entropy(8)
        self._probes[tx] = (candidate.addr, now, pad_to)
        candidate.probes += 1
        if candidate.state in (PathState.UNKNOWN, PathState.FAILED):
            candidate.state = PathState.PROBING
        self._effects.append(SendProbe(candidate.addr, tx, flags, pad_to))
        return tx

    def _note(self, now: float, why: str) -> None:
        self.history.append((now, why, self.active))

    def take_effects(self) -> list[Effect]:
        """Return what to do, in order."""
        effects, self._effects = self._effects, []
        return effects
