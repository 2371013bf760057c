"""Laws of the path core that hold after any sequence of events, honest or hostile."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from meshnode.base.address import Addr
from meshnode.base.limits import KEEPALIVE_S, MAX_CANDIDATES, MAX_PATH_HISTORY, MAX_PROBES_OUT
from meshnode.identity.keys import Identity
from meshnode.identity.record import Endpoint, EndpointRecord
from meshnode.paths.effects import MOVED, SEEKING, Resumed, SendProbe, Suspended
from meshnode.paths.peer import PeerPaths
from meshnode.paths.seeking import Connectivity

PEER = Identity(bytes(32)).id
START = 1_000.0
GOOD = [Addr(f"192.0.2.{n}", 4242) for n in range(1, 6)]
JUNK = [Addr("224.0.0.1", 1), Addr("192.0.2.1", 0), Addr("0.0.0.0", 1), Addr("255.255.255.255", 9), Addr("::", 1)]
REMOTE = [Addr(f"2001:db8::{n:x}", 4242) for n in range(1, 40)]

addrs = st.sampled_from(GOOD) | st.sampled_from(REMOTE) | st.sampled_from(JUNK)
few = st.lists(addrs, max_size=16)
gaps = st.sampled_from([0.0, 0.001, 0.01, 0.05, 0.1, 0.31, 1.0, 2.5, 16.0])


class Paths(RuleBasedStateMachine):
    """Every event that can reach a PeerPaths, in any order, with a sender that uses all that it may."""

    def __init__(self) -> None:
        super().__init__()
        rng = random.Random(1)
        self.now = START
        self.paths = PeerPaths(PEER, rng=rng, entropy=rng.randbytes, now=self.now)
        self.out: list[SendProbe] = []
        self.suspended = False

    @initialize(first=st.sampled_from(GOOD), dialler=st.booleans())
    def begin(self, first: Addr, dialler: bool) -> None:
        if dialler:
            self.paths.begin(first, self.now)
        else:
            self.paths.accept(first, self.now)
        self.collect()

    def collect(self) -> None:
        for effect in self.paths.take_effects():
            if isinstance(effect, SendProbe):
                self.out.append(effect)
            elif isinstance(effect, Suspended):
                assert not self.suspended, "suspended once, not twice"
                self.suspended = True
            elif isinstance(effect, Resumed):
                assert self.suspended, "only what was suspended is resumed"
                self.suspended = False
        del self.out[:-200]

    # ---- time

    @rule(gap=gaps)
    def wait(self, gap: float) -> None:
        self.now += gap
        for _ in range(3):
            due = self.paths.next_deadline()
            if due is None or due > self.now:
                break
            self.paths.tick(self.now)
            due = self.paths.next_deadline()
            assert due is None or due > self.now, "a tick leaves nothing due"
        self.collect()

    # ---- honest events

    @rule(which=st.integers(0, 199))
    def answer(self, which: int) -> None:
        if self.out:
            probe = self.out.pop(which % len(self.out))
            assert self.paths.on_pong(probe.tx, self.now)
            self.collect()

    @rule(src=addrs, flags=st.sampled_from([0, MOVED, SEEKING, MOVED | SEEKING]))
    def pinged(self, src: Addr, flags: int) -> None:
        before = self.paths.active
        self.paths.on_ping(src, flags, self.now)
        if self.paths.active != before:
            assert flags & MOVED
        self.collect()

    @rule(src=addrs)
    def authentic(self, src: Addr) -> None:
        self.paths.on_received(src, True, self.now)
        self.collect()

    @rule(found=few)
    def told(self, found: list[Addr]) -> None:
        self.paths.add_candidates([(a, "seed") for a in found], self.now)
        self.collect()

    @rule(found=few)
    def published(self, found: list[Addr]) -> None:
        self.paths.peer_record(EndpointRecord(PEER, 1, 0, 60, tuple(Endpoint(a) for a in found)), self.now)
        self.collect()

    @rule()
    def we_moved(self) -> None:
        self.paths.local_change(self.now)
        self.collect()

    @rule(count=st.sampled_from([0, 1200]))
    def in_flight(self, count: int) -> None:
        self.paths.set_in_flight(count, self.now)

    @rule()
    def data(self) -> None:
        self.paths.watchdog.data_at = self.now

    @rule()
    def echo_sent(self) -> None:
        self.paths.watchdog.expect(self.now)

    @rule()
    def echo_answered(self) -> None:
        self.paths.on_answer(self.now)

    # ---- a stranger that can spoof sources

    @rule(src=addrs)
    def spoofed_packet(self, src: Addr) -> None:
        before, known = self.paths.active, self.paths.book.paths()
        self.paths.on_received(src, False, self.now)
        assert self.paths.active == before, "a spoofed source moves no traffic"
        assert self.paths.book.paths() == known, "and teaches no address"
        assert not self.paths.take_effects(), "and causes no byte to be sent"

    @rule(src=addrs, tx=st.binary(max_size=8))
    def unknown_pong(self, src: Addr, tx: bytes) -> None:
        before = self.paths.active
        if tx not in {probe.tx for probe in self.out}:
            assert not self.paths.on_pong(tx, self.now)
        assert self.paths.active == before

    # ---- what always holds

    @invariant()
    def bounds_hold(self) -> None:
        assert len(self.paths.book.paths()) <= MAX_CANDIDATES
        assert len(self.paths._validation._probes) <= MAX_PROBES_OUT
        assert len(self.paths.history) <= MAX_PATH_HISTORY
        assert self.paths.active is None or self.paths.active in self.paths.book.paths()
        assert not set(JUNK) & set(self.paths.book.paths())

    def teardown(self) -> None:
        """Whatever went before: once the network answers everything, the core comes to rest."""
        paths = self.paths
        paths.set_in_flight(0, self.now)
        paths.on_answer(self.now)
        end = self.now + 12.0
        self.out.clear()
        waiting: list[tuple[float, SendProbe]] = []
        while True:
            waiting += [(self.now + 0.02, e) for e in paths.take_effects() if isinstance(e, SendProbe)]
            due = paths.next_deadline()
            at = min([t for t in (due, waiting[0][0] if waiting else None) if t is not None], default=end)
            if at >= end:
                break
            self.now = max(self.now, at)
            if waiting and waiting[0][0] <= self.now:
                _, probe = waiting.pop(0)
                paths.on_pong(probe.tx, self.now)
            else:
                paths.tick(self.now)
        self.now = end
        assert paths.seeking.connectivity is Connectivity.CONNECTED
        due = paths.next_deadline()
        assert due is None or due > self.now + 0.5 or due <= self.now + KEEPALIVE_S * 1.1
        assert paths.seeking.next_probe is None
        assert paths._validation.confirm_by is None
        assert paths._suspicious_at() is None, "no fast timer is left"


TestPaths = Paths.TestCase
TestPaths.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    derandomize=True,
)


@given(
    seed=st.integers(0, 2**32),
    base=st.floats(0.001, 0.3),
    jitter=st.floats(0.0, 0.1),
    start=st.integers(0, 1),
)
@settings(max_examples=100, derandomize=True)
def test_two_good_paths_of_similar_length_do_not_flap(seed: int, base: float, jitter: float, start: int) -> None:
    rng = random.Random(seed)
    paths = PeerPaths(PEER, rng=rng, entropy=rng.randbytes, now=START)
    now, two = START, GOOD[:2]
    paths.accept(two[start], now)
    switches = 0
    for turn in range(200):
        now += 0.05
        before = paths.active
        for src in two:
            paths.on_received(src, True, now)
            paths.on_ping(src, 0, now)
        if turn % 20 == 0:
            paths.set_in_flight(1, now)
        for probe in [e for e in paths.take_effects() if isinstance(e, SendProbe)]:
            paths.on_pong(probe.tx, now + base * (1 + jitter * rng.random()))
        due = paths.next_deadline()
        if due is not None and due <= now:
            paths.tick(now)
        paths.set_in_flight(0, now)
        switches += paths.active != before
    assert switches <= 1
