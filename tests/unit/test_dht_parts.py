"""What strangers and liars can do to one DHT core: nothing but be counted."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import DHT_MAX_BODY
from meshnode.base.wire import WireError
from meshnode.discovery.dht import SendSealed
from meshnode.discovery.dht.effects import RecordPushed
from meshnode.discovery.dht.lookup import ALPHA, BLAME, Lookup
from meshnode.discovery.dht.messages import (
    ContactInfo,
    Find,
    Get,
    Nodes,
    Ping,
    Pong,
    Push,
    PushAck,
    Status,
    Store,
    Stored,
    Value,
    Watch,
    Watched,
    decode_message,
    encode_message,
)
from meshnode.discovery.dht.store import Put
from meshnode.discovery.dht.table import Table
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import Endpoint, EndpointRecord, sign_record

sys.path.insert(0, str(Path(__file__).parent))
from dht_sim import WALL, Net, SimNode

TX = bytes(8)
HOME = Addr("198.18.0.1", 4000)


def _identity(n: int) -> Identity:
    return Identity(n.to_bytes(32, "big"))


def _record(identity: Identity, seq: int, *, ttl: int = 7200, wall: float = WALL + 1_000) -> EndpointRecord:
    return sign_record(identity, seq=seq, issued_ms=int(wall * 1000), ttl=ttl, endpoints=(Endpoint(HOME),))


def _tell(net: Net, node: SimNode, sender: Identity, body: bytes, src: Addr = HOME) -> list[bytes]:
    """Hand a body in; the bodies that go back to ``src``."""
    node.dht.handle(sender.id, body, src, len(body) + 97, net.now, net.wall())
    sent = [e for e in node.dht.take_effects() if isinstance(e, SendSealed) and e.addr == src]
    return [e.body for e in sent if not isinstance(decode_message(e.body), Ping)]


@pytest.mark.parametrize(
    "message",
    [
        Ping(TX),
        Find(TX, bytes(20)),
        Get(TX, bytes(20)),
        Nodes(TX, b"t" * 8, (ContactInfo(_identity(1).id, HOME), ContactInfo(_identity(2).id, Addr("2001:db8::1", 9)))),
        Value(TX, b"t" * 8, (), b"r" * 300),
        Store(TX, b"", b"r" * 1000),
        Stored(TX, Status.NEED_TOKEN, b"t" * 8),
        Watch(TX, b"", bytes(20), 2**62, 90),
        Watched(TX, Status.OK, b"", b""),
        Push(TX, b"r"),
        PushAck(TX),
    ],
)
def test_messages_survive_the_wire(message: object) -> None:
    for pad in (0, 33, 300, DHT_MAX_BODY):
        body = encode_message(message, pad_to=pad)  # type: ignore[arg-type]
        assert len(body) <= DHT_MAX_BODY
        assert decode_message(body) == message


def test_hostile_bodies_are_counted_and_never_raise() -> None:
    net = Net(1)
    node = net.add()
    rng = random.Random(4)
    whole = [
        encode_message(m, pad_to=200) for m in (Find(TX, bytes(20)), Push(TX, b"r"), Watch(TX, b"", bytes(20), 1, 9))
    ]
    for _ in range(3_000):
        body = bytearray(
            rng.choice(whole) if rng.random() < 0.7 else bytes([rng.randrange(16, 28)]) + rng.randbytes(60)
        )
        for _ in range(rng.randrange(1, 4)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        node.dht.handle(_identity(7).id, bytes(body[: rng.randrange(1, len(body) + 1)]), HOME, 300, net.now, net.wall())
        node.dht.take_effects()
    assert node.metrics.counters["dht_malformed"] > 1_000
    assert node.dht.counts()["contacts"] == 0


def test_too_many_or_undialable_contacts_are_dropped_by_name() -> None:
    net = Net(1)
    node = net.add()
    many = tuple(ContactInfo(_identity(i).id, HOME) for i in range(1, 18))
    _tell(net, node, _identity(1), encode_message(Nodes(TX, b"", many)))
    _tell(
        net, node, _identity(1), encode_message(Nodes(TX, b"", (ContactInfo(_identity(5).id, Addr("224.0.0.1", 5)),)))
    )
    assert node.metrics.counters["dht_bad_contacts"] == 2
    with pytest.raises(WireError):
        decode_message(b"")


def test_an_answer_is_never_longer_than_its_request_without_a_token() -> None:
    net = Net(2)
    node = net.add()
    for i in range(40):
        node.dht._table.answered(_identity(i + 50).id, net.fresh_addr())
    owner, asker = _identity(9), _identity(10)
    node.dht._shared.store.put(_record(owner, 5), "x", net.now, net.wall())
    key = owner.id.dht_key
    for pad in (0, 60, 120, 200, 400, 700, DHT_MAX_BODY):
        for request in (Ping(TX), Find(TX, key), Get(TX, key), Watch(TX, b"", key, 0, 90)):
            body = encode_message(request, pad_to=pad)
            for reply in _tell(net, node, asker, body):
                assert len(reply) <= len(body)
    store = encode_message(Store(TX, b"", _record(owner, 6).encoded))
    assert all(len(r) <= len(store) for r in _tell(net, node, asker, store))


def _contacts_of(net: Net, node: SimNode, addrs: list[Addr]) -> None:
    """Make nodes at these addresses contacts of ``node``: it hears of them, pings them, and they answer."""
    for number, addr in enumerate(addrs, 200):
        peer = _identity(number).id
        node.dht.add_contact_hint(peer, addr, net.now)
        for effect in node.dht.take_effects():
            if isinstance(effect, SendSealed) and effect.peer == peer:
                ping = decode_message(effect.body)
                assert isinstance(ping, Ping)
                node.dht.handle(peer, encode_message(Pong(ping.tx, b"t" * 8)), addr, 200, net.now, net.wall())
    assert {addr for _, addr in node.dht.contacts()} == set(addrs)


@pytest.mark.parametrize("host", ["45.1.{}.1", "2001:db8:{}::1"], ids=["IPv4", "IPv6"])
def test_an_answer_with_contacts_of_either_family_is_no_longer_than_its_request(host: str) -> None:
    net = Net(2)
    node = net.add()
    _contacts_of(net, node, [Addr(host.format(n), 4242) for n in range(1, 13)])
    named = []
    for pad in range(34, 850, 7):
        body = encode_message(Find(TX, bytes(20)), pad_to=pad)
        for reply in _tell(net, node, _identity(10), body):
            assert len(reply) <= len(body)
            answer = decode_message(reply)
            assert isinstance(answer, Nodes)
            named.append(len(answer.contacts))
    assert named[-1] == 12, "room for all is used, but for the ping that asks back"
    assert named == sorted(named)


def test_a_token_serves_for_five_minutes_and_not_for_ten() -> None:
    for begin in range(0, 600, 37):  # wherever in an epoch it is given
        for age, good in ((1, True), (299, True), (601, False)):
            net = Net(3)
            node = net.add()
            net.now += begin
            owner = _identity(9)
            record = _record(owner, 5, wall=WALL + net.now).encoded
            body = encode_message(Store(TX, b"", record))
            given = decode_message(_tell(net, node, owner, body)[0])
            assert isinstance(given, Stored)
            net.now += age
            reply = decode_message(_tell(net, node, owner, encode_message(Store(TX, given.token, record)))[0])
            assert isinstance(reply, Stored)
            assert reply.status is (Status.OK if good else Status.NEED_TOKEN), (begin, age)


def test_a_first_store_needs_the_address_token_and_a_newer_one_does_not() -> None:
    net = Net(3)
    node = net.add()
    owner = _identity(9)

    def store(token: bytes, record: bytes, src: Addr = HOME) -> Stored:
        replies = _tell(net, node, owner, encode_message(Store(TX, token, record)), src)
        reply = decode_message(replies[0])
        assert isinstance(reply, Stored)
        return reply

    refused = store(b"", _record(owner, 5).encoded)
    assert refused.status is Status.NEED_TOKEN
    assert store(b"forged!!", _record(owner, 5).encoded).status is Status.NEED_TOKEN
    elsewhere = Addr("198.18.0.2", 1)
    assert store(refused.token, _record(owner, 5).encoded, elsewhere).status is Status.NEED_TOKEN
    assert node.metrics.counters["dht_bad_token"] == 2
    assert store(refused.token, _record(owner, 5).encoded).status is Status.OK
    assert store(b"", _record(owner, 6).encoded, elsewhere).status is Status.OK
    assert store(b"", _record(owner, 4).encoded).status is Status.HAVE_NEWER
    forged = bytearray(_record(owner, 7).encoded)
    forged[3] ^= 1
    assert store(b"", bytes(forged)).status is Status.INVALID
    assert node.metrics.counters["dht_record_forged"] == 1


def test_an_unproven_watcher_is_sent_no_more_than_it_sent() -> None:
    net = Net(4)
    node = net.add()
    owner, watcher = _identity(9), _identity(10)
    node.dht._shared.store.put(_record(owner, 5), "x", net.now, net.wall())
    body = encode_message(Watch(TX, b"", owner.id.dht_key, 5, 90), pad_to=DHT_MAX_BODY)
    sent = sum(map(len, _tell(net, node, watcher, body)))
    for seq in range(6, 30):
        pushed = _tell(
            net, node, owner, encode_message(Store(TX, b"", _record(owner, seq).encoded)), Addr("198.18.9.9", 1)
        )
        assert len(pushed) == 1
        assert isinstance(decode_message(pushed[0]), Stored)
        node.dht.tick(net.now, net.wall())
    sent += sum(len(e.body) for e in node.dht.take_effects() if isinstance(e, SendSealed) and e.peer == watcher.id)
    assert sent <= len(body)
    assert node.metrics.counters["dht_push_unproven"] > 0
    assert node.metrics.counters["dht_pushes"] >= 1


def test_a_pushed_record_of_an_unwatched_key_gets_no_answer() -> None:
    net = Net(5)
    node = net.add()
    assert _tell(net, node, _identity(3), encode_message(Push(TX, _record(_identity(9), 5).encoded))) == []
    assert node.metrics.counters["dht_push_unwanted"] == 1


def test_an_asker_is_no_contact_until_it_answers() -> None:
    net = Net(6)
    node = net.add()
    _tell(net, node, _identity(3), encode_message(Find(TX, bytes(20)), pad_to=DHT_MAX_BODY))
    assert node.dht.contacts() == []


def test_neighbours_are_the_true_nearest_by_xor() -> None:
    rng = random.Random(8)
    own = NodeId(rng.randbytes(32))
    table = Table(own)
    net = Net(8)
    for _ in range(400):
        table.answered(NodeId(rng.randbytes(32)), net.fresh_addr())
    for _ in range(100):
        target = rng.randbytes(20)
        everyone = sorted(table.contacts(), key=lambda c: c.long_id ^ int.from_bytes(target, "big"))
        assert table.closest(target, 16) == everyone[:16]
    assert all(b.range[0] <= c.long_id <= b.range[1] for b in table.buckets for c in b.nodes.values())


def test_one_network_cannot_fill_a_bucket() -> None:
    rng = random.Random(9)
    table = Table(NodeId(bytes(32)))
    for i in range(200):
        table.answered(NodeId(rng.randbytes(32)), Addr(f"45.1.2.{i + 1}", 1000 + i))
    assert all(len(b.nodes) <= 8 for b in table.buckets)
    lan = Table(NodeId(bytes(32)))
    for i in range(20):
        lan.answered(NodeId(rng.randbytes(32)), Addr(f"192.168.1.{i + 1}", 1000))
    assert len(lan) == 20


def _lookup_with_a_liar(alive: int) -> tuple[list[NodeId], list[NodeId], list[NodeId]]:
    """A liar names 12 contacts nearer to the key than the four that an honest node names: what was asked, in order.

    Of the liar's contacts the first ``alive`` answer and the others do not. All honest ones answer.
    """
    rng, key, net = random.Random(12), bytes(20), Net(12)
    near = sorted((NodeId(rng.randbytes(32)) for _ in range(40)), key=lambda each: each.dht_key)
    lies, (liar, honest), truths, elsewhere = near[:12], near[20:22], near[24:28], near[30]
    named = {each: [ContactInfo(it, net.fresh_addr()) for it in its] for each, its in ((liar, lies), (honest, truths))}
    lookup = Lookup(_identity(1).id, key, 0.0, width=16, want_record=False)
    lookup.start(
        [ContactInfo(each, net.fresh_addr()) for each in (liar, elsewhere, honest)]
    )  # one path has two of them
    asked: list[NodeId] = []
    pending = lookup.take_queries()
    while pending:
        query = pending.pop(0)
        asked.append(query.id)
        if query.id in lies[alive:]:
            lookup.on_failed(query)
        else:
            lookup.on_answer(query, named.get(query.id, []), b"", None, 1.0)
        pending += lookup.take_queries()
    assert lookup.done
    assert set(lies + truths) <= set(asked), "put off is not given up: there was nothing nearer"
    return asked, lies, truths


def test_the_contacts_of_a_node_are_put_off_when_three_of_them_are_dead_and_none_answers() -> None:
    asked, lies, truths = _lookup_with_a_liar(alive=0)
    first_truth = min(map(asked.index, truths))
    under_way = sum(asked.index(each) < first_truth for each in lies)
    assert under_way == BLAME - 1 + ALPHA, "those that had been asked when the third failed"


def test_the_contacts_of_a_node_are_asked_in_their_order_when_one_of_them_answers() -> None:
    asked, lies, truths = _lookup_with_a_liar(alive=1)
    assert max(map(asked.index, lies)) < min(map(asked.index, truths))


def test_a_lookup_led_astray_by_liars_ends_within_its_budget() -> None:
    rng = random.Random(10)
    own = _identity(1).id
    lookup = Lookup(own, rng.randbytes(20), 0.0, width=8, want_record=True)
    lookup.start([ContactInfo(NodeId(rng.randbytes(32)), Addr("45.1.2.3", 5))])
    net = Net(10)
    asked = 0
    while not lookup.done:
        queries = lookup.take_queries()
        asked += len(queries)
        assert queries
        for query in queries:
            fakes = [ContactInfo(NodeId(rng.randbytes(32)), net.fresh_addr()) for _ in range(16)]
            lookup.on_answer(query, fakes, b"", None, 1.0)
    assert asked <= 120


def test_what_was_stored_and_watched_by_a_clock_that_was_ahead_gives_way_to_the_owners_next_record() -> None:
    net = Net(61)
    node, owner, watcher = net.add(), _identity(9), _identity(10)
    key, ahead = owner.id.dht_key, 86_400.0
    wrong, right = _record(owner, int((net.wall() + ahead) * 1000), wall=net.wall() + ahead), _record(owner, 5)
    assert node.dht._shared.store.put(wrong, "x", net.now, net.wall() + ahead) is Put.NEW
    assert node.dht._shared.store.fresh(key, net.wall() + ahead).encoded == wrong.encoded
    token = node.dht._holder.token(watcher.id, HOME, net.now)
    _tell(net, node, watcher, encode_message(Watch(TX, token, key, wrong.seq, 90)))
    _tell(net, node, owner, encode_message(Store(TX, node.dht._holder.token(owner.id, HOME, net.now), right.encoded)))
    assert node.dht._shared.store.fresh(key, net.wall()).encoded == right.encoded
    assert node.metrics.counters["dht_pushes"] == 1


def test_a_watcher_whose_own_clock_was_ahead_takes_the_owners_next_record() -> None:
    net = Net(62)
    node, owner = net.add(), _identity(9)
    node.dht.watch(owner.id, net.now, known_seq=int((net.wall() + 86_400) * 1000))
    node.dht.take_effects()
    right = _record(owner, 5)
    node.dht._watching.on_record(right, net.now)
    assert RecordPushed(right) in node.dht.take_effects()


def test_a_record_that_was_verified_is_valid_no_longer_than_it_says() -> None:
    net = Net(75)
    shared = net.add().dht._shared
    record = _record(_identity(7), 1, ttl=60, wall=net.wall())
    assert shared.open(record.encoded, net.now) == record
    assert shared.open(record.encoded, net.now + 59.0) is not None, "from memory"
    assert shared.open(record.encoded, net.now + 61.0) is None
    assert shared.metrics.counters["dht_record_expired"] == 1
