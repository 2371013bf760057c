"""Which local address a peer asks: floods of new sources take no place of a proven one, and each costs the same."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import MAX_ASKED
from meshnode.base.path import Path
from meshnode.runtime import asked_addresses
from meshnode.runtime.asked_addresses import INFO_6, MAPPED, AskedAddresses, Mark

SECOND = "10.0.0.2"
HONEST = Addr("198.51.100.7", 4242)


class Proven:
    """Proven sources, which count how often they are asked about one, and know when they are gone through."""

    def __init__(self) -> None:
        self.sources: set[Path] = set()
        self.asked = 0

    def __contains__(self, source: object) -> bool:
        self.asked += 1
        return source in self.sources

    def __iter__(self) -> Iterator[Path]:
        raise AssertionError("a walk through all")


def _mark(host: str) -> Mark:
    return (*INFO_6, MAPPED + socket.inet_aton(host) + bytes(4))


def _come(asked: AskedAddresses, source: Path) -> None:
    asked.note(source, [_mark(SECOND)])


def _crowd(count: int, first: int = 10) -> list[Addr]:
    """Return sources, one a network."""
    return [Addr(f"{first + (n >> 16)}.{n >> 8 & 255}.{n & 255}.1", 4242) for n in range(count)]


@pytest.fixture
def proven() -> Proven:
    return Proven()


@pytest.fixture
def asked(proven: Proven) -> AskedAddresses:
    found = AskedAddresses()
    found.set_others([SECOND], proven, None)
    return found


@pytest.mark.parametrize("heard_again", [True, False])
def test_a_flood_takes_no_place_of_a_proven_source_and_each_of_its_sources_costs_the_same(
    asked: AskedAddresses, proven: Proven, heard_again: bool
) -> None:
    peers = _crowd(MAX_ASKED)
    for peer in peers:
        _come(asked, peer)
    proven.sources.update(peers)
    for peer in peers if heard_again else ():
        _come(asked, peer)
    proven.asked = 0
    flood = _crowd(2 * MAX_ASKED, first=100)
    for source in flood:
        _come(asked, source)
    assert proven.asked <= 3 * len(flood)
    assert set(peers) <= asked.marks.keys()
    assert len(asked.marks) == 2 * MAX_ASKED


def test_a_newcomer_keeps_its_place_whatever_another_network_sends(asked: AskedAddresses, proven: Proven) -> None:
    _come(asked, HONEST)
    for port in range(2 * MAX_ASKED):
        _come(asked, Addr("203.0.113.9", port + 1))
    assert HONEST in asked.marks
    assert len(asked.marks) == MAX_ASKED


def test_of_too_many_that_were_proven_once_those_go_that_are_silent(
    asked: AskedAddresses, proven: Proven, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    monkeypatch.setattr(asked_addresses.time, "monotonic", lambda: now)
    for port in range(2 * MAX_ASKED):  # of one network, for months
        source = Addr("203.0.113.9", port + 1)
        _come(asked, source)
        proven.sources.add(source)
        _come(asked, source)
        now += 0.1
        _come(asked, Addr("203.0.113.9", 1))
    assert Addr("203.0.113.9", 1) in asked.marks
    assert Addr("203.0.113.9", 2) not in asked.marks
    assert len(asked.marks) == MAX_ASKED


def test_an_address_that_the_host_has_no_longer_is_forgotten_with_its_places(
    asked: AskedAddresses, proven: Proven
) -> None:
    for source in _crowd(MAX_ASKED):
        _come(asked, source)
    asked.set_others(["10.0.0.3"], proven, None)
    assert not asked.marks
    asked.set_others([SECOND], proven, None)
    for source in _crowd(MAX_ASKED):
        _come(asked, source)
    assert len(asked.marks) == MAX_ASKED
