"""A key that an attacker has surrounded: its record is found by all that ask priced ids, or a seed."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from meshnode.base.address import Addr
from meshnode.discovery.dht.lookup import Lookup
from meshnode.discovery.dht.messages import ContactInfo, Find, Nodes, decode_message, encode_message
from meshnode.discovery.dht.table import K, Table
from meshnode.identity import keyfile, price
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId, known_id
from tests.unit.test_dht_parts import TX, _identity, _tell

sys.path.insert(0, str(Path(__file__).parent))
from dht_sim import Net, build
from eclipse_sim import found_newest, surround

KEY = bytes(20)
OWN = NodeId(bytes(31) + b"\x01")
NEAREST = sorted((NodeId(random.Random(n).randbytes(32)) for n in range(400)), key=lambda each: each.dht_key)


def _contacts(ids: list[NodeId]) -> list[ContactInfo]:
    return [ContactInfo(each, Addr(f"45.{n // 250}.{n % 250}.1", 4242)) for n, each in enumerate(ids)]


def _crowded_mesh(number: int, *, priced: float, seeds: bool) -> tuple[Net, int]:
    net = build(60, number, priced=priced)
    owner = net.nodes[30]
    configured = {node.id: node.addr for node in net.nodes[:3]} if seeds else {}
    foes = surround(net, owner.id.dht_key, 24, 10, net.record(owner))
    for node in net.nodes:
        node.dht._shared.seeds = configured
    return net, found_newest(net, owner, foes, 20)


@pytest.mark.parametrize(("priced", "seeds"), [(0.6, False), (0.0, True)], ids=["prices", "seeds"])
def test_free_ids_around_a_key_hide_its_record_from_no_lookup(priced: float, seeds: bool) -> None:
    right = sum(_crowded_mesh(number, priced=priced, seeds=seeds)[1] for number in (4, 5, 6))
    assert right >= 57, "of 60; of 240 in twelve meshes 238 by seeds alone, all by prices"


def test_without_either_a_key_is_taken() -> None:
    _, right = _crowded_mesh(5, priced=0.0, seeds=False)
    assert right <= 5, "the attack is one"


def _lookup(free: int, width: int = 4) -> tuple[Lookup, dict[NodeId, None]]:
    paid = dict.fromkeys(NEAREST[free:])
    lookup = Lookup(OWN, KEY, 10.0, width=width, want_record=False, has_price=paid.__contains__)
    lookup.start(_contacts(NEAREST[: free + 60]))
    return lookup, paid


def test_a_lookup_ends_when_the_nearest_of_all_and_the_nearest_with_a_price_have_answered() -> None:
    lookup, _ = _lookup(60)
    while not lookup.done:
        for candidate in lookup.take_queries():
            lookup.on_answer(candidate, (), b"", None, 11.0)
    asked = [candidate.id for candidate in lookup.answers]
    assert {*NEAREST[:4], *NEAREST[60:64]} <= set(asked)
    assert len(asked) <= 32
    assert [c.id for c in lookup.closest(4)] == [*NEAREST[:4], *NEAREST[60:64]]


def test_silent_free_ids_do_not_use_a_lookup_up() -> None:
    lookup, paid = _lookup(200)
    while not lookup.done:
        for candidate in lookup.take_queries():
            if candidate.id in paid:
                lookup.on_answer(candidate, (), b"", None, 11.0)
            else:
                lookup.on_failed(candidate)
    assert {*NEAREST[200:204]} <= {candidate.id for candidate in lookup.answers}


def test_a_lookup_in_a_mesh_where_all_have_a_price_asks_no_more_than_where_none_has() -> None:
    counts = []
    for free in (0, 400):
        lookup = Lookup(OWN, KEY, 10.0, width=4, want_record=False, has_price=NEAREST[free:].__contains__)
        lookup.start(_contacts(NEAREST[:60]))
        while not lookup.done:
            for candidate in lookup.take_queries():
                lookup.on_answer(candidate, (), b"", None, 11.0)
        counts.append(lookup.rpcs)
    assert counts[0] == counts[1]


def test_a_lookup_asks_seeds_beside_its_paths_and_follows_none_of_their_contacts() -> None:
    lookup = Lookup(OWN, KEY, 10.0, width=2, want_record=True)
    infos = _contacts(NEAREST)
    lookup.start(infos[:8], infos[300:302])
    asked = lookup.take_queries()
    assert {c.id for c in asked} == {*NEAREST[:8], *NEAREST[300:302]}
    for candidate in asked:
        contacts = infos[8:12] if candidate.id in NEAREST[300:] else ()
        lookup.on_answer(candidate, contacts, b"", None, 11.0)
    assert lookup.done


def test_a_lookup_awaits_a_slow_seed_only_while_no_other_has_the_record() -> None:
    owner = Identity(bytes(32))
    net = Net(1)
    record = net.record(net.add(seed=owner.seed))
    infos = _contacts(NEAREST)
    for found in (None, record):
        lookup = Lookup(OWN, owner.id.dht_key, 10.0, width=2, want_record=True)
        lookup.start(infos[:4], infos[300:301])
        asked = lookup.take_queries()
        for candidate in asked:
            if candidate.id is not NEAREST[300]:
                lookup.on_answer(candidate, (), b"", found, 11.0)
        assert not lookup.done
        lookup.on_slow(next(c for c in asked if c.id is NEAREST[300]))
        assert lookup.done is (found is not None)


def test_free_ids_push_no_priced_one_out_of_a_bucket() -> None:
    paid = dict.fromkeys(NEAREST[:200])
    table = Table(NodeId(bytes(32)), has_price=paid.__contains__)
    far = [each for each in NEAREST if (each.dht_key[0] ^ table.own.dht_key[0]) & 0x80]
    free, priced = [each for each in far if each not in paid], [each for each in far if each in paid]
    if not priced:  # which half is far depends on the hash of this node's id
        free, priced = free[: len(free) // 2], free[len(free) // 2 :]
        paid.update(dict.fromkeys(priced))
    for info in _contacts(free[:40] + priced[:20]):
        table.answered(info.id, info.addr)
    bucket = table.bucket_of(far[0].dht_key)
    assert sum(c.priced for c in bucket.nodes.values()) == K // 2
    kept = [c.node_id for c in bucket.nodes.values() if c.priced]
    assert table.wants(priced[-1], Addr("44.1.1.1", 1)) is False
    for info in _contacts(free[40:60]):
        table.answered(info.id, info.addr)
    assert [c.node_id for c in bucket.nodes.values() if c.priced] == kept


def test_an_answer_names_the_nearest_of_all_and_the_nearest_with_a_price() -> None:
    net = Net(1)
    node = net.add()
    paid = dict.fromkeys(NEAREST[100:])
    node.dht._shared.table._has_price = paid.__contains__
    for info in _contacts(NEAREST[:8] + NEAREST[100:108]):
        node.dht._shared.table.answered(info.id, info.addr)
    (reply,) = _tell(net, node, _identity(1), encode_message(Find(TX, KEY), pad_to=1_105))
    nodes = decode_message(reply)
    assert isinstance(nodes, Nodes)
    named = [contact.id for contact in nodes.contacts]
    assert NEAREST[0] in named[:2]
    assert NEAREST[100] in named[:2]


def test_an_id_has_its_price_when_its_digest_begins_with_zeros() -> None:
    paid = Identity((4165).to_bytes(32, "big"))
    assert price.has_price(paid.id)
    assert not price.has_price(Identity(bytes(32)).id)
    assert price.is_enough(bytes([0, 0x0F]) + bytes([0xFF]) * 14)
    assert not price.is_enough(bytes([0, 0x10]) + bytes(14))


def test_a_key_is_made_until_its_id_has_the_price() -> None:
    numbers = iter(range(4160, 4170))
    assert price.make_identity(lambda: Identity(next(numbers).to_bytes(32, "big"))).seed == (4165).to_bytes(32, "big")


def test_ids_that_a_new_key_is_not_made_of_take_no_place_of_known_ones() -> None:
    known_id.cache_clear()
    peer = known_id(bytes(31) + b"\x07")
    numbers = iter(range(4160, 4170))
    price.make_identity(lambda: Identity(next(numbers).to_bytes(32, "big")))
    assert known_id.cache_info().currsize == 1
    assert known_id(bytes(31) + b"\x07") is peer


def test_the_key_of_a_new_home_is_one_that_was_paid_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert price.has_price(keyfile.load_or_create(tmp_path / "key").id)
