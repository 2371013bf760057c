"""Services and names that gossip has not told, on real sockets: found in the DHT, with failover among them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from meshnode import Node
from meshnode.directory import offer_publisher
from meshnode.directory.bundle import dht_key_of, open_bundle
from meshnode.errors import NameDisputed, NotFound
from meshnode.gossip import Kind
from meshnode.gossip.dissemination.entry_store import EntryStore
from meshnode.gossip.entry import Entry, Put, read_entry
from meshnode.identity.node_id import NodeId
from meshnode.sdk import life
from meshnode.sdk.node import runtime_of
from meshnode.stack.dht_offers import DhtOffers
from tests.conftest import MakeNode


def says(text: bytes) -> Any:
    async def handler(reader: Any, writer: Any, peer: Any) -> None:
        await reader.read()
        writer.write(text)

    return handler


async def _call(node: Node, name: str, trusted: Any = "any") -> bytes:
    reader, writer = await node.open_any(name, trusted=trusted)
    writer.write(b"hello")
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


def _store(node: Node) -> EntryStore:
    gossip = runtime_of(node).stack.gossip
    assert gossip is not None
    return gossip.core.store


def _offers(node: Node) -> DhtOffers:
    registry = runtime_of(node).stack.registry
    assert registry is not None
    return registry.offers


def _refuse(node: Node, name: str, origin: NodeId | None = None) -> None:
    """Have a node's gossip keep nothing of a service or a name, of one node or of all, as when it has no place."""
    store, put = _store(node), _store(node).put

    def refuse(entry: Entry, link: NodeId | None = None) -> Put:
        return Put.FULL if entry.name == name and origin in (None, entry.origin) else put(entry, link)

    store.put = refuse  # type: ignore[method-assign]


async def _published(node: Node) -> None:
    """Wait until what a node offers is in the DHT: the next publication is not soon."""
    publisher, clock = _offers(node).publisher, runtime_of(node).clock
    async with asyncio.timeout(20):
        while not publisher.published or (publisher.next_deadline() or 0) < clock.monotonic() + 100:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_an_instance_that_gossip_has_not_told_serves_and_another_one_when_it_fails(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offer_publisher, "OFFERS_BY_GOSSIP", 1)
    seed = await make_node(seed_role=True)
    first, second, client = [await make_node(seed=seed) for _ in range(3)]
    _refuse(client, "db")
    for number in range(4):
        seed.serve(f"other{number}", says(b"other"), allow=["any"])
    first.serve("db", says(b"first"), allow=["any"])
    await _published(first)
    assert await _call(client, "other1") == b"other"
    assert await _call(client, "db", [first.id, second.id]) == b"first"
    assert runtime_of(client).metrics.counters["offers_found"] == 1
    assert not list(_store(client).named(Kind.SERVICE, "db"))
    second.serve("db", says(b"second"), allow=["any"])
    await _published(second)
    await first.close()
    async with asyncio.timeout(20):
        while True:
            try:
                assert await _call(client, "db") == b"second"
                break
            except NotFound:  # a search of the moment before found the first one only
                await asyncio.sleep(0.5)
    assert _offers(client).summary()["found"] == 2


async def test_the_first_use_of_a_service_hears_of_all_that_offer_it(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offer_publisher, "OFFERS_BY_GOSSIP", 1)
    seed = await make_node(seed_role=True)
    honest, thief, client = [await make_node(seed=seed) for _ in range(3)]
    _refuse(client, "db", honest.id)
    for number in range(4):
        seed.serve(f"other{number}", says(b"other"), allow=["any"])
    honest.serve("db", says(b"honest"), allow=["any"])
    await _published(honest)
    thief.serve("db", says(b"thief"), allow=["any"])
    await _published(thief)
    with pytest.raises(NameDisputed) as error:
        await client.open_any("db")
    assert set(error.value.claimants) == {str(honest.id), str(thief.id)}


async def test_a_nodes_name_that_gossip_has_not_told_is_found(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offer_publisher, "OFFERS_BY_GOSSIP", 1)
    seed = await make_node(seed_role=True, name="hill")
    client = await make_node(seed=seed)
    _refuse(client, "tower")
    owner, *_ = [await make_node(seed=seed, name=name) for name in ("tower", "lake", "wood")]
    await _published(owner)
    assert await client.resolve("tower") is not None
    assert (await client.connect("tower")).peer == owner.id
    with pytest.raises(NotFound):
        await client.connect("nobody")


async def _offering(make_node: MakeNode, monkeypatch: pytest.MonkeyPatch) -> tuple[Node, Node, bytes]:
    """Return a seed that holds a service of another node, that node, and the key of the service."""
    monkeypatch.setattr(offer_publisher, "OFFERS_BY_GOSSIP", 1)
    seed = await make_node(seed_role=True)
    owner = await make_node(seed=seed)
    for number in range(4):
        seed.serve(f"other{number}", says(b"other"), allow=["any"])
    owner.serve("db", says(b"mine"), allow=["any"])
    await _published(owner)
    key = dht_key_of(Kind.SERVICE, "db")
    assert _held(seed, key) == [True]
    return seed, owner, key


def _held(node: Node, key: bytes) -> list[bool]:
    """Return, for each entry of a key that a node holds, whether it offers something: a withdrawal does not."""
    found = [read_entry(each, time.time()) for each in open_bundle(_offers(node).find(key))]
    return [isinstance(entry, Entry) and entry.value is not None for entry in found]


async def test_a_node_that_is_closed_has_taken_its_services_back_from_the_dht(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed, owner, key = await _offering(make_node, monkeypatch)
    await owner.close()
    assert _held(seed, key) == [False]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_dht_that_does_not_answer_holds_no_end_up(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    _, owner, _ = await _offering(make_node, monkeypatch)
    monkeypatch.setattr(_offers(owner).publisher, "on_published", lambda *_: None)
    monkeypatch.setattr(life, "WITHDRAW_S", 600.0 if cancelled else 0.1)
    ending = asyncio.create_task(owner.close())
    if cancelled:
        async with asyncio.timeout(20):
            while not _offers(owner).publisher.is_withdrawing:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
    else:
        await asyncio.wait_for(ending, 60.0)
    assert runtime_of(owner).is_closed
