"""Services and names of a mesh in which gossip does not tell all: found in the DHT, and used like any others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from meshnode.base.wire import encode
from meshnode.directory import offer_publisher, offer_search
from meshnode.directory.announcement import Offer
from meshnode.directory.bundle import make_bundle
from meshnode.directory.offer_store import OfferStore
from meshnode.discovery.dht.kept import Source
from meshnode.discovery.dht.messages import Status
from meshnode.errors import NotFound
from meshnode.gossip import Kind
from meshnode.gossip.dissemination import telling
from meshnode.gossip.dissemination.places import Places
from meshnode.gossip.entry import sign_entry
from meshnode.identity.keys import Identity
from meshnode.sim.link import ModelEngines
from meshnode.sim.plain import PlainSealer
from meshnode.sim.world import SimNode, Weather, World
from meshnode.stack import dht_offers
from meshnode.stack.directory_link import DirectoryLink
from meshnode.trust.policy import parse_policy

STORED, STORED_NAMES = 48, 20  # entries that gossip keeps
BY_GOSSIP = 16  # offers of a kind from which on the DHT has them too


def _registry(node: SimNode) -> DirectoryLink:
    assert node.mesh.registry is not None
    return node.mesh.registry


def _make(world: World, number: int) -> SimNode:
    host = f"10.{number % 200}.{number // 200}.1"
    node = SimNode(world, host, ModelEngines(world.entropy), seed_role=number == 0, gossip=True, sealer=PlainSealer)
    assert node.mesh.gossip is not None
    store = node.mesh.gossip.core.store
    for kind, limit in ((Kind.SERVICE, STORED), (Kind.NAME, STORED_NAMES)):
        store._places[kind] = Places(limit, lambda link: None)
    return node


def _mesh(count: int, seed: int = 1) -> tuple[World, list[SimNode]]:
    world = World(seed, Weather(delay=0.02, jitter=0.005))
    nodes = [_make(world, number) for number in range(count)]
    for node in nodes[1:]:
        node.join(nodes[0])
        world.run(0.02)
    world.run(10.0)
    return world, nodes


def _offer(world: World, node: SimNode, *names: str) -> None:
    registry = _registry(node)
    for name in names:
        registry.directory.announce(name, Offer(), world.now)
    registry.drain(world.now)
    node.on_dirty()


def _lose(world: World, name: str, *nodes: SimNode) -> None:
    """Have entries of a name give way to others in the gossip of these nodes, as in one that is full."""
    for node in nodes:
        gossip = node.mesh.gossip
        assert gossip is not None
        for entry in (*gossip.core.store.named(Kind.SERVICE, name), *gossip.core.store.named(Kind.NAME, name)):
            gossip.core.store._evict(entry)
            gossip.core.store.take_effects()
            gossip.entries.on_expired(entry, world.now)


def _seek(world: World, node: SimNode, name: str, kind: Kind = Kind.SERVICE) -> list[SimNode]:
    """The nodes that offer a service, as one of them knows after it has asked the DHT."""
    registry = _registry(node)
    world.run(offer_search.AGAIN_S)
    registry.offers.seek(kind, name, world.now)
    assert world.run(5.0, lambda: not registry.offers.search._running)
    instances = [instance.node for instance in registry.instances(name, world.now)]
    return [node for node in world.nodes.values() if isinstance(node, SimNode) and node.id in instances]


@pytest.fixture(scope="module")
def large() -> Iterator[tuple[World, list[SimNode]]]:
    """A mesh in which gossip tells of some offers only: 16 nodes with five services each, of which gossip keeps 48."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offer_publisher, "OFFERS_BY_GOSSIP", BY_GOSSIP)
        world, nodes = _mesh(16)
        for number, node in enumerate(nodes):
            _offer(world, node, *(f"s{number}-{n}" for n in range(5)))
        world.run(8.0)
        yield world, nodes


Large = tuple[World, list[SimNode]]


def test_what_gossip_has_refused_is_found_in_the_dht_and_used(large: Large) -> None:
    world, nodes = large
    client = nodes[7]
    registry = _registry(client)
    names = {f"s{number}-{n}": node for number, node in enumerate(nodes) if node is not client for n in range(5)}
    lacking = [name for name in names if not registry.instances(name, world.now)]
    assert len(lacking) > 20
    gossip = client.mesh.gossip
    assert gossip is not None
    for name in lacking[:8]:
        before = client.mesh.metrics.counters["dht_rpcs"]
        assert _seek(world, client, name) == [names[name]]
        assert client.mesh.metrics.counters["dht_rpcs"] - before <= 40
        assert not list(gossip.core.store.named(Kind.SERVICE, name)), "it is not passed on"
    stream, inbox = client.open(client.connect(names[lacking[0]].id), lacking[0])
    stream.write(b"hello")
    client.on_dirty()
    assert world.run(3.0, lambda: bytes(inbox.data) == b"hello")


def test_what_was_withdrawn_is_found_no_longer_not_even_by_a_node_that_had_found_it(large: Large) -> None:
    world, nodes = large
    owner, client, other = nodes[1], nodes[2], nodes[3]
    _offer(world, owner, "brief")
    world.run(3.0)
    _lose(world, "brief", client, other)
    assert _seek(world, client, "brief") == [owner]
    _registry(owner).directory.withdraw("brief", world.now)
    _registry(owner).drain(world.now)
    owner.on_dirty()
    world.run(3.0)
    _lose(world, "brief", client, other)
    assert _seek(world, other, "brief") == []
    assert _seek(world, client, "brief") == []


def test_another_instance_is_found_when_the_one_that_was_known_fails(large: Large) -> None:
    world, nodes = large
    first, second, client = nodes[4], nodes[5], nodes[6]
    _offer(world, first, "pair")
    world.run(3.0)
    _lose(world, "pair", client)
    assert _seek(world, client, "pair") == [first]
    _offer(world, second, "pair")
    world.run(3.0)
    _lose(world, "pair", client)
    registry = _registry(client)
    registry.directory.experience.on_failed(first.id, world.now)
    assert _seek(world, client, "pair") == [first, second]
    registry.directory.experience.on_failed(first.id, world.now)  # it still does, some seconds later
    assert registry.choose("pair", world.now)[0].node == second.id
    client.connect(second.id)


def test_a_flood_of_free_ids_at_a_key_hides_neither_a_priced_nor_an_established_origin(
    large: Large, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, nodes = large
    priced, client = nodes[8], nodes[9]
    monkeypatch.setattr(dht_offers, "has_price", lambda peer: peer == priced.id)
    _offer(world, priced, "wanted")
    world.run(3.0)
    _lose(world, "wanted", client)
    value = Offer(meta={f"k{n}": "x" * 100 for n in range(6)}).encoded()
    for number in range(300):
        thief = Identity(number.to_bytes(32, "big"))
        ms = int(world.wall() * 1000)
        entry = sign_entry(thief, kind=Kind.SERVICE, name="wanted", seq=ms, issued_ms=ms, ttl=3600, value=value)
        for node in nodes:  # each has proven its address, and come slowly enough
            source = Source(thief.id, f"198.{number % 100}.100.1", is_established=False)
            _registry(node).offers.store(make_bundle([entry.encoded]), source)
    _registry(client).offers.seek(Kind.SERVICE, "wanted", world.now)
    world.run(3.0)
    instances = [instance.node for instance in _registry(client).instances("wanted", world.now)]
    assert priced.id in instances
    assert len(instances) > 5, "the flood is there"
    registry = _registry(client)
    assert [i.node for i in registry.choose("wanted", world.now, only=(priced.id,))] == [priced.id]
    assert _seek(world, client, "s1-1") == [nodes[1]], "nor does it hide another service"


def test_holders_that_have_lost_all_are_given_it_again_at_the_next_publication(
    large: Large, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, nodes = large
    owner, client = nodes[10], nodes[11]
    monkeypatch.setattr(offer_publisher, "REPUBLISH_S", 12.0)
    _offer(world, owner, "steady")
    world.run(3.0)
    _lose(world, "steady", client)
    for node in nodes:
        _registry(node).offers.held = OfferStore(64, node.mesh.context.rng)
    assert _seek(world, client, "steady") == []
    world.run(12.0)
    assert _seek(world, client, "steady") == [owner]


def test_a_name_is_found_and_pinned_and_only_where_the_policy_allows_it(large: Large) -> None:
    world, nodes = large
    owner, client, judge = nodes[12], nodes[13], nodes[14]
    for number in range(BY_GOSSIP + 2):  # so that gossip knows many
        entry_of = nodes[number % 10].mesh.gossip
        assert entry_of is not None
        entry_of.entries.publish_soon(Kind.NAME, f"n{number}", encode(1), 3600, world.now)
        nodes[number % 10].on_dirty()
    world.run(5.0)
    registry = _registry(owner)
    registry.names.claim("tower", int(world.wall() * 1000), world.now)
    registry.drain(world.now)
    owner.on_dirty()
    world.run(4.0)
    for node in (client, judge):
        _lose(world, "tower", node)
        with pytest.raises(NotFound):
            _registry(node).names.resolve("tower", world.wall())
    judge.guard.set_local(parse_policy(f'[[allow]]\nfrom = "{nodes[1].id}"\nnames = "tower"'.encode()))
    world.run(0.5)
    for node in (client, judge):
        _seek(world, node, "tower", Kind.NAME)
    assert _registry(client).names.resolve("tower", world.wall()) == owner.id
    with pytest.raises(NotFound):
        _registry(judge).names.resolve("tower", world.wall())
    judge.guard.set_local(None)
    world.run(0.5)
    assert _registry(judge).names.resolve("tower", world.wall()) == owner.id, "what was found is looked at again"


def test_what_is_no_offer_of_its_sender_is_refused(large: Large) -> None:
    world, nodes = large
    offers, thief, other = _registry(nodes[0]).offers, Identity(b"t" * 32), Identity(b"o" * 32)
    ms = int(world.wall() * 1000)
    said = {"seq": ms, "issued_ms": ms, "ttl": 60}
    good = sign_entry(thief, kind=Kind.SERVICE, name="x", value=Offer().encoded(), **said)  # type: ignore[arg-type]
    malformed = sign_entry(thief, kind=Kind.SERVICE, name="x", value=b"\x00", **said)  # type: ignore[arg-type]
    topic = sign_entry(thief, kind=Kind.SUBSCRIPTION, name="x", value=b"", **said)  # type: ignore[arg-type]
    source = Source(thief.id, "192.0.2.1", is_established=False)

    def store(*entries: bytes, by: Source = source) -> Status:
        return offers.store(make_bundle(entries), by)

    assert store(good.encoded, by=Source(other.id, "192.0.2.1", is_established=True)) is Status.INVALID
    assert store(good.encoded, good.encoded) is Status.INVALID
    assert store(malformed.encoded) is store(topic.encoded) is Status.INVALID
    assert store(good.encoded[:-1] + b"\x01") is Status.INVALID
    assert store(good.encoded) is Status.OK


def test_a_mesh_of_which_gossip_tells_all_publishes_nothing_and_asks_nothing() -> None:
    world, nodes = _mesh(4)
    _offer(world, nodes[1], "db")
    world.run(3.0)
    assert not _registry(nodes[2]).seek_service("unknown", world.now)
    assert not _registry(nodes[2]).seek_name("unknown", world.now)
    assert [i.node for i in _registry(nodes[2]).instances("db", world.now)] == [nodes[1].id]
    for node in nodes:
        counters = node.mesh.metrics.counters
        assert not [name for name in counters if name.startswith(("offer", "dht_statements"))]


def test_more_offers_than_gossip_has_places_for_are_told_to_none_and_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offer_publisher, "OFFERS_BY_GOSSIP", 8)
    monkeypatch.setattr(telling, "OFFERS_TOLD", 12)
    world, nodes = _mesh(12)
    for number, node in enumerate(nodes):
        for n in range(3):
            _offer(world, node, f"s{number}-{n}")
            world.run(0.3)
    world.run(8.0)
    for node in nodes:
        gossip = node.mesh.gossip
        assert gossip is not None
        assert 12 <= gossip.entries.count(Kind.SERVICE) <= 13, "in the time that news takes one more was told"
    client, owner = nodes[2], nodes[9]
    assert _seek(world, client, "s9-1") == [owner]
    stream, inbox = client.open(client.connect(owner.id), "s9-1")
    stream.write(b"hello")
    client.on_dirty()
    assert world.run(3.0, lambda: bytes(inbox.data) == b"hello")
    _registry(owner).directory.withdraw("s9-1", world.now)
    _registry(owner).drain(world.now)
    owner.on_dirty()
    world.run(3.0)
    assert _seek(world, nodes[4], "s9-1") == []
    assert _seek(world, client, "s9-1") == []


def test_a_node_that_ends_takes_its_offers_back_from_the_dht(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offer_publisher, "OFFERS_BY_GOSSIP", 4)
    monkeypatch.setattr(telling, "OFFERS_TOLD", 6)
    world, nodes = _mesh(10)
    for number, node in enumerate(nodes):
        _offer(world, node, *(f"s{number}-{n}" for n in range(2)))
        _registry(node).names.claim(f"n{number}", 1, world.now)
        _registry(node).drain(world.now)
        node.on_dirty()
        world.run(0.3)
    world.run(20.0)
    owner, client = nodes[8], nodes[4]
    registry = _registry(owner)
    assert set(registry.offers.publisher.out()) == {(Kind.SERVICE, "s8-0"), (Kind.SERVICE, "s8-1"), (Kind.NAME, "n8")}
    assert _seek(world, client, "s8-1") == [owner]
    ended: list[float] = []
    registry.offers.on_withdrawn = lambda: ended.append(world.now)
    began = world.now
    assert registry.withdraw_published(world.now)
    owner.on_dirty()
    assert world.run(1.5, lambda: bool(ended)), "the end of a node waits no longer"
    assert ended[0] - began > 0.02, "not before any holder could have it"
    owner.mesh.close(world.now)
    owner.kill()
    for other in (nodes[5], client):
        for kind, name in ((Kind.SERVICE, "s8-0"), (Kind.SERVICE, "s8-1")):
            assert _seek(world, other, name, kind) == []
        _seek(world, other, "n8", Kind.NAME)
        with pytest.raises(NotFound):
            _registry(other).names.resolve("n8", world.wall())


def test_a_node_of_a_small_mesh_has_nothing_to_take_back() -> None:
    world, nodes = _mesh(4)
    _offer(world, nodes[1], "db")
    world.run(3.0)
    assert not _registry(nodes[1]).withdraw_published(world.now)
    assert "offers_published" not in nodes[1].mesh.metrics.counters
