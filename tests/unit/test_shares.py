"""Every table that newcomers enter is shared by the same groups: allocation (IPv6 /32), network (/24, /48), host (/64).

A table with a share of its own kind is one that an owner of many IPv6 networks, or of many ids, can take.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest

from meshnode.base.address import Addr
from meshnode.base.fair_rate import path_shares
from meshnode.base.fair_table import source_shares
from meshnode.base.metrics import Metrics
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection
from meshnode.relay.server import RelayLimits, RelayServer
from meshnode.runtime.acceptor import Accepted, CountedSocket
from meshnode.stack.half_open import HalfOpen
from meshnode.stack.hoards import heaviest

PACKAGE = Path(__file__).parents[2] / "meshnode"
SHARES = ("source_shares(", "path_shares(")
TABLES = {  # of newcomers -> where its entries get their groups
    "directory/offer_store.py": "directory/offer_store.py",
    "discovery/dht/contacts.py": "discovery/dht/contacts.py",
    "discovery/dht/store.py": "discovery/dht/store.py",
    "discovery/dht/watchers.py": "discovery/dht/watchers.py",
    "relay/server.py": "stack/relay_service.py",
    "runtime/acceptor.py": "runtime/acceptor.py",
    "runtime/asked_addresses.py": "runtime/asked_addresses.py",
    "runtime/knock_listener.py": "runtime/knock_listener.py",
    "runtime/tunnel_places.py": "runtime/tunnel_places.py",
    "sdk/places.py": "stack/connections.py",  # services; forwards and the proxy: below
    "services/forward.py": "services/forward.py",
    "services/proxy/listener.py": "services/proxy/listener.py",
    "services/udp.py": "services/udp.py",
    "stack/address_credit.py": "stack/address_credit.py",
    "stack/half_open.py": "stack/half_open.py",
    "stack/newest_first.py": "stack/newest_first.py",
    "stack/peer_table.py": "stack/admission.py",
    "stack/relay_client.py": "stack/relay_client.py",
    "stack/tunnel_dials.py": "stack/tunnel_dials.py",
    "topics/neighbours.py": "stack/connections.py",
    "gossip/dissemination/places.py": "stack/gossip_link.py",
    "gossip/membership/leaves.py": "stack/gossip_link.py",
    "gossip/dissemination/awaited.py": "",  # by the link that announced each: links are few, and shared by hyparview
    "gossip/membership/members.py": "",  # by the link that brought the first accusation of each
    "trust/successors.py": "",  # of members, by the ticket or delegate that let them in: known without an address
}
BY_NETWORK = {  # files that know networks alone
    "base/fair_rate.py": "the rate of a network; of the total, an allocation's part is kept",
    "base/fair_table.py": "where they are defined",
    "discovery/dht/shared.py": "the rate of contacts that have answered",
    "gossip/dissemination/roll.py": "of them the allocation",
    "stack/junk.py": "the rate of a network, above which one datagram of junk is enough",
}


def source(path: str) -> str:
    return (PACKAGE / path).read_text(encoding="utf-8")


def test_every_table_is_listed() -> None:
    found = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if "FairTable(" in path.read_text()}
    found |= {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if " Places(" in path.read_text()}
    found -= {"base/fair_table.py", "sdk/service.py", "gossip/dissemination/entry_store.py"}
    assert found | {"runtime/acceptor.py"} == set(TABLES)


@pytest.mark.parametrize("place", sorted({place for place in TABLES.values() if place}))
def test_entries_get_the_groups_that_all_have(place: str) -> None:
    assert any(name in source(place) for name in SHARES)


def test_no_other_file_makes_groups_of_its_own() -> None:
    made = re.compile(r"(?<![\w.])(network_of|source_network|source_groups|path_groups|allocation_of)\(")
    found = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if made.search(path.read_text())}
    found |= {"stack/junk.py"}  # which caches it
    assert found == set(BY_NETWORK)


# ---- one owner of 65,536 networks, and another one

CROWD = [f"2001:db8:{number:x}::1" for number in range(200)]
ANOTHER = "2001:db9::1"
Table = Callable[[str], bool]  # whether a source still has its place after all of the crowd came


def accepted(stack: ExitStack) -> bool:
    table = Accepted(Metrics(), bound=64)
    for host in CROWD:
        table.enter(stack.enter_context(CountedSocket()), source_shares(host))
    return table.enter(stack.enter_context(CountedSocket()), source_shares(ANOTHER)) and len(table) == 49


def relay(_: ExitStack) -> bool:
    server = RelayServer(RelayLimits(clients=8), lambda peer: True, lambda size: bytes(size), Metrics(), 0.0)
    honest = NodeId(bytes([7]) * 32)
    count = iter(range(1_000_000))
    server._entropy = lambda size: next(count).to_bytes(size, "big")
    server.reserve(honest, path_shares(Addr(ANOTHER, 1)), 0.0)
    for number, host in enumerate(CROWD):
        server.reserve(NodeId(bytes([1, number]) * 16), path_shares(Addr(host, 1)), 0.0)
    return server.serves(honest)


def half_open(_: ExitStack) -> bool:
    table, honest = HalfOpen(), cast(Connection, object())
    gone = [table.add(honest, Addr(ANOTHER, 1))]
    gone += [table.add(cast(Connection, object()), Addr(host, port)) for host in CROWD for port in range(10)]
    return honest not in gone


@pytest.mark.parametrize("table", [accepted, relay, half_open])
def test_the_owner_of_many_networks_takes_no_place_of_another(table: Callable[[ExitStack], bool]) -> None:
    with ExitStack() as stack:
        assert table(stack)


def test_what_has_to_go_is_of_the_host_of_the_network_of_the_allocation_that_has_most() -> None:
    class Held:
        def __init__(self, host: str) -> None:
            self.peer = host

    honest = Held(ANOTHER)
    crowd = [Held(host) for host in CROWD]
    twin = [Held(CROWD[7].replace("::1", ":1::1")) for _ in range(2)]
    sizes = {cast(Connection, one): 100 for one in crowd} | {cast(Connection, one): 60 for one in twin}
    sizes[cast(Connection, honest)] = 5_000
    assert heaviest(sizes, lambda peer: source_shares(str(peer))) in twin
