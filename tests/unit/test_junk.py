"""Sources that send junk are refused for a second; sources that sent none, and those of live connections, never are."""

from __future__ import annotations

from meshnode.base.address import Addr
from meshnode.base.limits import (
    JUNK_PER_NETWORK_BURST,
    JUNK_PER_SOURCE_BURST,
    JUNK_PER_SOURCE_PER_S,
    MAX_JUNK_SOURCES,
)
from meshnode.base.path import ViaRelay, ViaTunnel
from meshnode.base.timers import Timers
from meshnode.stack.junk import Junk

FLOODER, PEER = Addr("198.51.100.7", 4242), Addr("198.51.100.8", 4242)


class Guard:
    """A guard with its timers."""

    def __init__(self) -> None:
        self.timers = Timers()
        self.proven: dict[object, None] = {}
        self.in_use: set[object] = set()
        self.junk = Junk(self.proven, lambda: self.in_use, self.timers)  # type: ignore[arg-type,return-value]

    def flood(self, source: Addr, count: int, now: float = 0.0) -> None:
        """So much junk at one moment."""
        for _ in range(count):
            self.junk.note(source, now)


def test_a_source_is_refused_after_a_burst_of_junk_and_only_that_one() -> None:
    guard = Guard()
    guard.flood(FLOODER, int(JUNK_PER_SOURCE_BURST))
    assert not guard.junk.refused
    guard.flood(FLOODER, 1)
    assert set(guard.junk.refused) == {FLOODER}


def test_it_is_forgiven_after_a_second_and_refused_again_when_it_goes_on() -> None:
    guard = Guard()
    guard.flood(FLOODER, int(JUNK_PER_SOURCE_BURST) + 1)
    guard.timers.run(0.99)
    assert FLOODER in guard.junk.refused
    guard.timers.run(1.0)
    assert FLOODER not in guard.junk.refused
    guard.flood(FLOODER, int(JUNK_PER_SOURCE_PER_S) + 1, now=1.0)
    assert FLOODER in guard.junk.refused
    guard.timers.run(2.0)
    assert guard.timers.next_deadline() is None, "no timer without a flood"


def test_an_address_that_a_connection_uses_is_never_refused_whatever_comes_from_it() -> None:
    guard = Guard()
    guard.in_use.add(PEER)
    guard.flood(PEER, 100_000)
    assert not guard.junk.refused
    guard.in_use.clear()
    guard.flood(PEER, 100_000, now=1.5)
    assert set(guard.junk.refused) == {PEER}


def test_an_address_that_answered_is_refused_for_its_own_junk_only() -> None:
    guard = Guard()
    guard.proven[PEER] = None
    for port in range(10_000):
        guard.flood(Addr("198.51.100.7", port), 1)
    guard.flood(PEER, int(JUNK_PER_SOURCE_BURST))
    assert PEER not in guard.junk.refused
    guard.flood(PEER, 1)
    assert PEER in guard.junk.refused


def test_in_a_network_that_floods_one_datagram_of_junk_is_enough() -> None:
    guard = Guard()
    ports = [Addr("198.51.100.7", port) for port in range(1, int(JUNK_PER_NETWORK_BURST) + 1)]
    for source in ports:
        guard.flood(source, 1)
    assert not guard.junk.refused
    guard.flood(Addr("198.51.100.9", 1), 1)
    guard.flood(Addr("203.0.113.1", 1), 1)
    assert set(guard.junk.refused) == {Addr("198.51.100.9", 1)}, "neither another network nor what sent none"


def test_a_flood_from_many_sources_is_remembered_within_a_bound() -> None:
    guard = Guard()
    for number in range(30_000):
        guard.flood(Addr(f"198.51.100.{number % 256}", number // 256 + 1), 1)
    assert len(guard.junk.refused) <= MAX_JUNK_SOURCES
    assert len(guard.junk._sources) <= MAX_JUNK_SOURCES


def test_what_comes_by_a_detour_says_nothing_of_an_address() -> None:
    guard = Guard()
    for _ in range(5_000):
        guard.junk.note(ViaTunnel("", "198.51.100.7", 1), 0.0)
        guard.junk.note(ViaRelay("a relay"), 0.0)
    assert not guard.junk.refused


def test_a_source_that_asks_too_much_is_refused_alone_and_not_its_network() -> None:
    guard = Guard()
    for number in range(10_000):
        guard.junk.note(Addr("198.51.100.9", number + 1), 0.0, excess=True)
    assert not guard.junk.refused
    for _ in range(int(JUNK_PER_SOURCE_BURST) + 1):
        guard.junk.note(FLOODER, 0.0, excess=True)
    assert set(guard.junk.refused) == {FLOODER}
    guard.flood(PEER, 1)
    assert PEER not in guard.junk.refused


def test_all_tunnels_of_a_host_that_bring_junk_are_one_source_and_are_closed() -> None:
    guard = Guard()
    first, second, other = (
        ViaTunnel("", host, n) for n, host in ((1, "198.51.100.7"), (2, "198.51.100.7"), (3, "::1"))
    )
    guard.flood(first, int(JUNK_PER_SOURCE_BURST) - 1)  # type: ignore[arg-type]
    guard.flood(other, 100)  # type: ignore[arg-type]
    assert not guard.junk.tunnels
    guard.flood(second, 2)  # type: ignore[arg-type]
    assert set(guard.junk.tunnels) == {second}
    assert not guard.junk.refused
    guard.timers.run(1.0)
    assert not guard.junk.tunnels
    guard.flood(ViaTunnel("someone", "198.51.100.7", 4), 5_000)  # type: ignore[arg-type]
    assert not guard.junk.tunnels, "a relay that this node chose"
