"""What a lying peer or relay may make a node probe: nothing that no other node can have, and not much of the rest."""

from __future__ import annotations

import random

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import MAX_CANDIDATES, MAX_ENDPOINTS, SEARCH_PROBES
from meshnode.base.path import Path as PeerPath
from meshnode.base.path import udp_address
from meshnode.identity.keys import Identity
from meshnode.identity.record import Endpoint, EndpointRecord
from meshnode.nat.local_networks import LocalNetworks
from meshnode.nat.port_search import AHEAD, guesses, spray, spread
from meshnode.paths.effects import SendProbe
from meshnode.paths.peer import PeerPaths

PEER = Identity(bytes(32)).id
RELAY = Addr("192.0.2.1", 4242)
HERE = LocalNetworks((("10.0.0.2", 24), ("fd00::2", 64)), frozenset([Addr("10.0.0.2", 4242), Addr("203.0.113.9", 7)]))
NOBODYS = {
    "loopback": "127.0.0.1",
    "loopback, IPv6": "::1",
    "multicast": "224.0.0.251",
    "multicast, IPv6": "ff02::1",
    "broadcast": "255.255.255.255",
    "broadcast on our network": "10.0.0.255",
    "any address": "0.0.0.0",
    "any address, IPv6": "::",
    "our own address": "10.0.0.2",
}


def connected(here: LocalNetworks = HERE) -> PeerPaths:
    rng = random.Random(1)
    paths = PeerPaths(PEER, rng=rng, entropy=rng.randbytes, now=0.0)
    paths.book.here = here
    paths.accept(RELAY, 0.0)
    paths.take_effects()
    return paths


def record(*addrs: Addr) -> EndpointRecord:
    endpoints = tuple(Endpoint(addr) for addr in addrs)
    return EndpointRecord(
        id=PEER, seq=1, issued=0, ttl=60, endpoints=endpoints, relays=(), capabilities=(), encoded=b""
    )


def probed(paths: PeerPaths, seconds: float = 3.0) -> list[PeerPath]:
    """Everyone that gets a probe, though the peer has moved and is sought at every address known."""
    now = 0.0
    paths.local_change(now)
    found = []
    while now < seconds:
        found += [effect.path for effect in paths.take_effects() if isinstance(effect, SendProbe)]
        now += 0.01
        paths.tick(now)
    return found


@pytest.mark.parametrize("what", NOBODYS)
def test_an_address_that_no_other_node_can_have_is_never_probed(what: str) -> None:
    liar = Addr(NOBODYS[what], 4242)
    for port, named in ((4242, liar), (0, Addr("198.51.100.7", 0))):
        paths = connected()
        paths.peer_record(record(Addr(liar.host, port), named, Addr("198.51.100.8", 1)), 0.0)
        paths.introduced(named, 0.0, 0.0)
        assert set(probed(paths)) == {RELAY, Addr("198.51.100.8", 1)}
        assert paths.book.best_guess() != named


def test_a_loopback_address_counts_where_the_mesh_is_on_loopback_too() -> None:
    paths = connected(LocalNetworks(loopback=True))
    paths.peer_record(record(Addr("127.0.0.1", 9)), 0.0)
    assert Addr("127.0.0.1", 9) in probed(paths)


def test_thousands_of_introductions_cost_no_more_probes_than_there_are_candidates() -> None:
    paths = connected()
    for n in range(3_000):
        paths.introduced(Addr(f"198.18.{n >> 8}.{n & 255}", 4242), 0.0, 0.0)
        paths.peer_record(record(*(Addr(f"198.19.{n >> 8}.{n & 255}", p) for p in range(1, MAX_ENDPOINTS + 1))), 0.0)
    paths.take_effects()
    paths.local_change(0.0)
    paths.tick(0.01)
    burst = [effect.path for effect in paths.take_effects() if isinstance(effect, SendProbe)]
    assert len(burst) <= MAX_CANDIDATES + 1
    assert RELAY in burst


def test_a_search_tries_the_likeliest_ports_first_each_once_and_not_one_more_than_allowed() -> None:
    for seen in (1024, 40_000, 65_535):
        found = guesses(seen, random.Random(1))
        assert len(found) == len(set(found)) == SEARCH_PROBES
        assert all(1024 <= port <= 65_535 for port in found)
        if seen == 40_000:
            assert found[:AHEAD] == list(range(40_001, 40_001 + AHEAD))


@pytest.mark.parametrize("part", ["spread", "spray"])
def test_a_search_is_paced_and_ends(part: str) -> None:
    to = Addr("198.51.100.7", 40_000)
    search = spread(to, range(256), 5.0) if part == "spread" else spray(to, random.Random(1), 5.0)
    sent: list[PeerPath] = []
    now = 5.0
    while search.at is not None:
        now = search.at
        sent += search.step(now)
    assert len(set(sent)) == len(sent) == (256 if part == "spread" else SEARCH_PROBES)
    assert {addr.host for addr in map(udp_address, sent) if addr is not None} == {to.host}
    assert (now - 5.0) < (0.1 if part == "spread" else 2.0)
    assert search.step(now) == []
