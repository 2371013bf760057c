"""Upkeep of a DHT's contacts: the dead go, liars go and stay away, and a mesh without news is left alone."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from statistics import mean

import pytest

from meshnode.base.address import Addr
from meshnode.base.fair_table import source_shares
from meshnode.base.limits import DHT_MAX_LOOKUPS, DHT_MAX_PROBES
from meshnode.base.metrics import Metrics
from meshnode.discovery.dht import Dht
from meshnode.discovery.dht.announce import CONTACT_RETRY_S, MAX_RETRY_S, RETRIES, RETRY_S
from meshnode.discovery.dht.budget import Budget
from meshnode.discovery.dht.contacts import (
    ASK_BACK_S,
    FIRST_CHECK_S,
    LEAF_S,
    LEAST_CHECK_S,
    LIAR_S,
    LIARS,
    MAX_CHECK_S,
    PROBES_FULL,
)
from meshnode.discovery.dht.effects import SendSealed
from meshnode.discovery.dht.lookups import LOOKUPS_FULL
from meshnode.discovery.dht.messages import (
    Find,
    Message,
    Nodes,
    Ping,
    Status,
    Store,
    Stored,
    Value,
    Watch,
    decode_message,
    encode_message,
)
from meshnode.discovery.dht.table import Contact
from meshnode.discovery.dht.watching import RETRY_S as FIRST_RETRY_S
from meshnode.discovery.dht.watching import SLOW_RETRIES
from meshnode.identity.keys import Identity
from meshnode.identity.record import sign_record
from tests.unit.test_dht_parts import HOME, TX, _identity, _record

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))
from dht_sim import Net, SimNode, build

from bench import dht_join
from bench.dht_churn import measure


def _knows(node: SimNode, other: SimNode) -> bool:
    return other.id in dict(node.dht.contacts())


def test_few_contacts_are_dead_while_half_of_a_mesh_is_replaced_in_ten_minutes() -> None:
    result = measure(40, 1_200.0, 20)
    assert result["right"] == 20
    assert result["dead_share"] < 0.1


def test_a_contact_that_dies_is_found_out_though_no_lookup_asks_it() -> None:
    net = build(6, 2)
    node, dead = net.nodes[2], net.nodes[4]
    net.run(60.0)
    net.kill(dead)
    assert _knows(node, dead)
    net.run(FIRST_CHECK_S * 1.5)
    assert not _knows(node, dead)


def test_a_contact_that_dies_is_found_out_though_a_crowd_leaves_all_pings_unanswered() -> None:
    net = build(6, 2)
    node, dead = net.nodes[2], net.nodes[4]
    net.run(60.0)
    net.kill(dead)
    places = node.dht._contacts._probing
    for n in range(DHT_MAX_PROBES):  # one that gives its place up is followed by the next of the crowd
        places.add((_identity(100 + n).id, Addr(f"198.51.100.{n}", 4000)), *source_shares(f"198.51.100.{n}"))
    net.run(FIRST_CHECK_S * 1.5)
    assert not _knows(node, dead)


def test_watches_of_a_crowd_that_comes_leave_lookups_to_this_node() -> None:
    net = build(12, 5)
    node, wanted = net.nodes[2], net.nodes[9]
    net.publish(wanted)
    net.run(2.0)
    for n in range(2 * DHT_MAX_LOOKUPS):
        node.dht.watch(_identity(100 + n).id, net.now, unasked=True)
    found, _, _ = net.resolve(node, wanted.id)
    assert found is not None
    assert LOOKUPS_FULL not in node.metrics.counters


def test_checks_grow_rare_while_none_is_dead_and_come_often_when_some_are() -> None:
    net = build(12, 3)
    node = net.nodes[5]
    net.run(3 * 3_600.0)
    assert node.dht._contacts._check_s > 2 * FIRST_CHECK_S
    before = node.metrics.counters["dht_rpcs"]
    rare = node.dht._contacts._check_s
    net.run(3_600.0)
    assert node.metrics.counters["dht_rpcs"] - before < 120, "a lookup each 15 minutes, and 11 checks"
    for other in net.nodes[6:]:
        net.kill(other)
    net.run(2 * MAX_CHECK_S)
    assert node.dht._contacts._check_s < rare
    assert node.dht._contacts._check_s >= LEAST_CHECK_S
    assert {peer for peer, _ in node.dht.contacts()} == {other.id for other in net.nodes[:6]} - {node.id}


def test_an_outage_of_this_nodes_own_link_takes_no_contact() -> None:
    net = build(8, 4)
    node = net.nodes[3]
    known = set(dict(node.dht.contacts()))
    del net.by_addr[node.addr]
    net.run(2 * FIRST_CHECK_S)
    net.by_addr[node.addr] = node
    assert set(dict(node.dht.contacts())) == known
    net.run(130.0)
    assert set(dict(node.dht.contacts())) == known


def _lie(net: Net, liar: SimNode, record: bytes) -> None:
    from meshnode.discovery.dht.messages import Find, Get, Nodes, Ping, Pong, Reply, Request

    def lies(request: Request) -> Reply | None:
        if isinstance(request, Get):
            return Value(request.tx, bytes(8), (), record)
        if isinstance(request, Find):
            return Nodes(request.tx, bytes(8), ())
        return Pong(request.tx, bytes(8)) if isinstance(request, Ping) else None

    liar.lies = lies


def test_a_node_that_answers_with_a_forged_record_is_no_contact_for_an_hour() -> None:
    net = build(6, 5)
    node, liar, owner = net.nodes[1], net.nodes[3], net.nodes[5]
    forged = bytearray(net.record(owner).encoded)
    forged[-1] ^= 1
    _lie(net, liar, bytes(forged))
    net.publish(owner)
    net.run(1.0)
    assert _knows(node, liar)
    net.resolve(node, net.add().id)
    assert not _knows(node, liar), "it answered for a key that is not the record's"
    assert node.metrics.counters[LIARS] == 1
    node.dht.add_contact_hint(liar.id, liar.addr, net.now)
    net.pump(node)
    net.run(5.0)
    assert not _knows(node, liar)
    liar.lies = None
    net.run(LIAR_S + 1_200.0)
    node.dht.add_contact_hint(liar.id, liar.addr, net.now)
    net.pump(node)
    net.run(5.0)
    assert _knows(node, liar)
    assert len(encode_message(Value(bytes(8), bytes(8), (), bytes(forged)))) > 0


def test_a_record_that_has_run_out_is_no_lie() -> None:
    net = build(6, 6)
    node, slow = net.nodes[1], net.nodes[3]
    owner = _identity(9)
    old = sign_record(
        owner, seq=5, issued_ms=int((net.wall() - 8_000) * 1000), ttl=7_200, endpoints=_record(owner, 5).endpoints
    )
    _lie(net, slow, old.encoded)
    net.resolve(node, owner.id)
    assert node.metrics.counters["dht_record_expired"] >= 1
    assert _knows(node, slow)


@pytest.mark.parametrize(("nodes", "most"), [(10, 77), (20, 130), (40, 134)])
def test_a_join_asks_each_node_about_itself_once_and_costs_little_at_any_size(nodes: int, most: int) -> None:
    joins = [dht_join.measure(nodes, seed) for seed in range(1, 9)]
    assert mean(joined["datagrams"] for joined in joins) < most, "74, 126 and 129"
    assert mean(joined["bytes"] for joined in joins) < 80_000
    assert min(joined["contacts"] for joined in joins) >= min(nodes, 16)
    assert min(joined["contact_of"] for joined in joins) >= min(nodes, 16)


def test_a_publication_and_a_join_share_a_lookup() -> None:
    net = build(10, 3)
    node = net.add()
    net.join(node, [net.nodes[0]])
    net.publish(node)
    net.run(0.9)
    assert node.metrics.counters["dht_lookups"] == 1
    found, _, _ = net.resolve(net.nodes[5], node.id)
    assert found is not None


def _holders(net: Net, node: SimNode) -> int:
    return sum(node.id.dht_key in other.dht.records for other in net.nodes if other is not node)


def test_a_publication_that_no_node_took_is_made_again_by_itself() -> None:
    net = build(6, 7)
    node, others = net.nodes[2], [other for other in net.nodes if other is not net.nodes[2]]
    for other in others:
        del net.by_addr[other.addr]
    net.publish(node)
    net.run(20.0)
    assert node.metrics.counters[RETRIES] >= 2
    net.by_addr.update({other.addr: other for other in others})
    net.run(128.0)
    assert _holders(net, node) == 5
    made = node.metrics.counters[RETRIES]
    net.run(1_000.0)
    assert node.metrics.counters[RETRIES] == made, "all have it"


def _alone(net: Net) -> tuple[SimNode, list[SimNode]]:
    """Cut a node off that publishes, and return it and the others."""
    node, others = net.nodes[2], [other for other in net.nodes if other is not net.nodes[2]]
    for other in others:
        del net.by_addr[other.addr]
    net.publish(node)
    return node, others


def test_a_publication_that_too_few_take_is_retried_ever_more_rarely_and_a_renewal_does_not_begin_again() -> None:
    net = build(6, 7)
    node, _ = _alone(net)
    net.run(2 * MAX_RETRY_S)
    assert 10 <= node.metrics.counters[RETRIES] <= 14, "one each time that the wait doubles, and those of 2,400 s"
    made = node.metrics.counters[RETRIES]
    for _ in range(4):
        net.publish(node)
        net.run(MAX_RETRY_S)
    assert node.metrics.counters[RETRIES] - made <= 6


def test_a_retry_comes_soon_after_a_move_and_when_a_contact_comes() -> None:
    net = build(6, 7)
    node, _ = _alone(net)
    announcer = node.dht._announcer
    net.run(MAX_RETRY_S)
    assert announcer._retry_timer.when > net.now + 2 * CONTACT_RETRY_S
    announcer.on_contact(Contact(net.nodes[4].id, net.nodes[4].addr), net.now)
    assert announcer._retry_timer.when <= net.now + 1.2 * CONTACT_RETRY_S
    elsewhere = net.record(net.nodes[3]).endpoints
    said = net.record(node)
    seq = said.seq + 1
    moved = sign_record(node.identity, seq=seq, issued_ms=seq, ttl=7_200, endpoints=elsewhere)
    made = node.metrics.counters[RETRIES]
    node.dht.publish(moved, net.now)
    net.pump(node)
    net.run(40 * RETRY_S)
    assert node.metrics.counters[RETRIES] - made >= 3


def test_a_network_that_is_there_again_is_noticed_by_the_first_message_however_long_it_was_cut() -> None:
    net = build(6, 7)
    node, others = _alone(net)
    net.run(MAX_RETRY_S)
    net.by_addr.update({other.addr: other for other in others})
    others[3].dht.lookup(node.id, net.now)
    net.pump(others[3])
    net.run(2.0)
    assert _holders(net, node) >= 4


def test_the_first_message_after_a_publication_into_a_cut_network_brings_it_out_at_once() -> None:
    net = build(6, 8)
    node, other = net.nodes[2], net.nodes[4]
    del net.by_addr[node.addr]  # it hears nothing
    record = net.publish(node)
    sent = {n.addr: net.by_addr.pop(n.addr) for n in net.nodes if n.addr in net.by_addr}  # nor does any hear it
    net.run(3.0)
    net.by_addr.update({**sent, node.addr: node})
    other.dht.lookup(node.id, net.now)
    net.pump(other)
    net.run(0.5)
    held = [n.dht.records.fresh(node.id.dht_key, net.wall()) for n in net.nodes if n is not node]
    assert sum(item is not None and item.encoded == record.encoded for item in held) == 5


def test_a_first_message_that_was_read_late_is_no_sign_of_a_network_that_was_cut() -> None:
    net = build(6, 8)
    node = net.nodes[2]

    def sent_again(late_by: float) -> int:
        net.publish(node)
        before = node.metrics.counters["dht_rpcs"]
        node.dht._announcer._late_by = lambda: late_by
        node.dht._announcer.on_heard(net.now + 0.6)
        return node.metrics.counters["dht_rpcs"] - before

    assert sent_again(0.3) == 0
    assert sent_again(0.0) > 0


def test_a_watch_begins_at_the_seeds_and_without_a_lookup_while_too_many_requests_time_out() -> None:
    net = build(12, 8)
    node, peer, seed = net.nodes[2], net.nodes[7], net.nodes[0]
    node.dht.add_contact_hint(seed.id, seed.addr, net.now, seed=True)
    net.run(2.0)
    lookups = node.metrics.counters["dht_lookups"]
    node.dht._shared.rpcs.budget.share = 1.0
    node.dht.watch(peer.id, net.now)
    watched = node.dht._watching._watched[peer.id.dht_key]
    assert node.metrics.counters["dht_lookups"] == lookups
    assert list(watched.holders) == [seed.id]
    retry = watched.retry_timer
    assert retry is not None
    assert retry.when - net.now >= 0.5 * FIRST_RETRY_S * SLOW_RETRIES
    node.dht._shared.rpcs.budget.share = 0.0
    net.pump(node)
    net.run(3 * FIRST_RETRY_S * SLOW_RETRIES)
    assert node.metrics.counters["dht_lookups"] > lookups
    assert len(watched.holders) > 1


def test_a_holder_that_does_not_answer_stays_while_too_many_requests_time_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = build(12, 8)
    node, peer = net.nodes[2], net.nodes[7]
    node.dht.watch(peer.id, net.now)
    net.pump(node)
    net.run(2.0)
    watched = node.dht._watching._watched[peer.id.dht_key]
    holders = set(watched.holders)
    assert holders
    for other in net.nodes:
        if other.id in holders:
            net.kill(other)
    for congested, left in ((True, holders), (False, set())):
        monkeypatch.setattr(Budget, "congested", congested)
        lookups = node.metrics.counters["dht_lookups"]
        node.dht.rewatch(peer.id, net.now)
        net.pump(node)
        net.run_until(lambda: not node.dht._shared.rpcs._calls, 30.0)
        assert holders & set(watched.holders) == left
        assert (node.metrics.counters["dht_lookups"] == lookups) is congested


def test_a_record_that_says_the_same_costs_its_stores_and_a_narrow_lookup() -> None:
    net = build(40, 9)
    node = net.nodes[20]
    net.publish(node)
    net.run(20.0)

    def cost() -> int:
        before = node.metrics.counters["dht_rpcs"]
        net.publish(node)
        net.run(2.0)
        return node.metrics.counters["dht_rpcs"] - before

    same = cost()
    net.move(node)
    assert same < 25
    assert cost() > same, "a new address is told to all that are nearest now"


def test_a_mesh_that_nothing_enters_or_leaves_is_asked_ever_more_rarely() -> None:
    net = build(20, 10)
    net.run(4_000.0)
    before = sum(node.metrics.counters["dht_lookups"] for node in net.nodes)
    net.run(14_400.0)
    assert sum(node.metrics.counters["dht_lookups"] for node in net.nodes) - before <= 20 * 6, "one each hour"


def _tell(net: Net, node: SimNode, sender: Identity, message: Message) -> list[Message]:
    """Hand a message from ``HOME`` in, let a second pass, and return what went there."""
    body = encode_message(message, pad_to=900)
    node.dht.handle(sender.id, body, HOME, len(body), net.now, net.wall())
    sent = node.dht.take_effects()
    net.now += 2 * ASK_BACK_S
    node.dht.tick(net.now, net.wall())
    sent += node.dht.take_effects()
    return [decode_message(e.body) for e in sent if isinstance(e, SendSealed) and e.addr == HOME]


def test_an_unknown_asker_is_asked_back_unless_its_token_proves_its_address() -> None:
    for stores in (False, True):
        net = build(3, 6)
        node, asker = net.nodes[0], _identity(9)
        body = encode_message(Find(TX, asker.id.dht_key), pad_to=900)
        node.dht.handle(asker.id, body, HOME, len(body), net.now, net.wall())
        (answer,) = [decode_message(e.body) for e in node.dht.take_effects() if isinstance(e, SendSealed)]
        assert isinstance(answer, Nodes), "nothing but the answer at once"
        token = answer.token if stores else b"forged!!"
        replies = _tell(net, node, asker, Store(TX, token, _record(asker, 5).encoded))
        assert any(isinstance(reply, Ping) for reply in replies) is not stores
        assert (asker.id in dict(node.dht.contacts())) is stores


def test_a_contact_that_moved_is_asked_back_unless_its_token_proves_its_new_address() -> None:
    for shows in (False, True):
        net = build(3, 6)
        node, mover = net.nodes[0], net.nodes[1]
        body = encode_message(Find(TX, mover.id.dht_key), pad_to=900)
        node.dht.handle(mover.id, body, HOME, len(body), net.now, net.wall())
        (answer,) = [decode_message(e.body) for e in node.dht.take_effects() if isinstance(e, SendSealed)]
        assert isinstance(answer, Nodes), "nothing but the answer at once"
        assert dict(node.dht.contacts())[mover.id] == mover.addr, "a seal proves no address"
        watch = Watch(TX, answer.token if shows else b"", net.nodes[2].id.dht_key, 0, 60)
        told = _tell(net, node, mover.identity, watch)
        assert any(isinstance(message, Ping) for message in told) is not shows
        assert (dict(node.dht.contacts())[mover.id] == HOME) is shows


def _asked_back(node: SimNode, net: Net, asker: Identity, host: str, others: list[tuple[Identity, str]]) -> bool:
    """Return whether one that asks is pinged when all of the ``others`` asked before it."""
    for sender, source in [*others, (asker, host)]:
        body = encode_message(Find(TX, asker.id.dht_key), pad_to=900)
        node.dht.handle(sender.id, body, Addr(source, 4000), len(body), net.now, net.wall())
    node.dht.take_effects()
    net.now += 2 * ASK_BACK_S
    node.dht.tick(net.now, net.wall())
    sent = [e for e in node.dht.take_effects() if isinstance(e, SendSealed) and e.addr.host == host]
    return any(isinstance(decode_message(e.body), Ping) for e in sent)


def test_a_crowd_of_one_network_that_asks_leaves_a_place_to_an_asker_of_another() -> None:
    net = build(3, 6)
    node = net.nodes[0]
    crowd = [(_identity(100 + n), f"198.51.100.{n}") for n in range(DHT_MAX_PROBES + 10)]
    assert _asked_back(node, net, _identity(9), HOME.host, crowd)
    assert node.metrics.counters[PROBES_FULL] > 0, "the crowd took all places that there were"


def test_pings_that_a_crowd_leaves_unanswered_keep_no_asker_of_another_network_waiting() -> None:
    net = build(3, 6)
    contacts = net.nodes[0].dht._contacts
    for n in range(DHT_MAX_PROBES + 10):
        contacts.meet(_identity(100 + n).id, Addr(f"198.51.100.{n}", 4000), net.now, asked_us=True)
    assert len(contacts._probing) == DHT_MAX_PROBES
    for n in range(DHT_MAX_PROBES + 10):  # and one answer may name any address
        contacts.meet(_identity(300 + n).id, Addr(f"203.0.{n}.7", 4000), net.now)
    contacts.meet(_identity(9).id, HOME, net.now, asked_us=True)
    assert (_identity(9).id, HOME) in contacts._probing
    assert len(contacts._probing) == DHT_MAX_PROBES


def test_the_ping_that_asks_whether_a_contact_lives_is_short() -> None:
    net = build(3, 6)
    node = net.nodes[0]
    net.now += 2 * FIRST_CHECK_S
    node.dht.tick(net.now, net.wall())
    sent = [e.body for e in node.dht.take_effects() if isinstance(e, SendSealed)]
    assert [len(body) for body in sent if isinstance(decode_message(body), Ping)] == [32]


def test_a_ping_of_an_unknown_node_is_answered_and_no_more() -> None:
    net = build(3, 6)
    replies = _tell(net, net.nodes[0], _identity(9), Ping(TX))
    assert len(replies) == 1
    assert not isinstance(replies[0], Ping)


def test_a_contact_that_answered_stores_without_a_token() -> None:
    net = build(3, 6)
    node, contact = net.nodes[0], net.nodes[1]
    body = encode_message(Store(TX, b"", net.record(contact).encoded))
    node.dht.handle(contact.id, body, contact.addr, len(body), net.now, net.wall())
    (reply,) = [decode_message(e.body) for e in node.dht.take_effects() if isinstance(e, SendSealed)]
    assert isinstance(reply, Stored)
    assert reply.status is Status.OK


def test_a_leaf_lets_contacts_come_back_that_were_taken_out_for_a_time() -> None:
    for leaf in (False, True):
        rng = random.Random(1)
        dht = Dht(_identity(1).id, rng=rng, entropy=rng.randbytes, metrics=Metrics(), leaf=leaf)
        other = _identity(5).id
        dht._contacts.on_leaf(other, 1.0)
        assert not dht._table.wants(other, HOME)
        now: float | None = 1.0
        while (now := dht.next_deadline()) is not None and now < 1.0 + LEAF_S + 120.0:
            dht.tick(now, 1_800_000_000.0 + now)
            dht.take_effects()
        assert dht._table.wants(other, HOME), leaf
