"""One lookup, one table, and two or three nodes: what each step of the DHT promises."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import DHT_MAX_LOOKUP_RPCS, DHT_MAX_WATCHES_PER_SENDER
from meshnode.base.metrics import Metrics
from meshnode.discovery.dht import ContactsChanged, Dht, Found, LookupDone, Published, RecordPushed
from meshnode.discovery.dht import lookup as dht_lookup
from meshnode.discovery.dht.lookup import ALPHA, PATHS, Candidate, Lookup
from meshnode.discovery.dht.messages import ContactInfo
from meshnode.discovery.dht.rtt import INITIAL_RTO_S, MAX_URGENT_FIRST_S, MIN_RTO_S, URGENT_FIRST_S, RttBook, rto
from meshnode.discovery.dht.table import EVICT_AFTER, TOKEN_LIFE_S, K, Table
from meshnode.discovery.dht.watchers import Watcher, Watchers
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import Endpoint, EndpointRecord, sign_record

sys.path.insert(0, str(Path(__file__).parent))
from dht_sim import WALL, Net, SimNode

KEY = bytes(20)
OWN = NodeId(bytes(31) + b"\x01")
NEAREST = sorted((NodeId(random.Random(n).randbytes(32)) for n in range(200)), key=lambda each: each.dht_key)


def _contacts(ids: list[NodeId]) -> list[ContactInfo]:
    return [ContactInfo(each, Addr(f"45.{n}.7.1", 4242)) for n, each in enumerate(ids)]


def _lookup(width: int = 4, *, want_record: bool = False) -> Lookup:
    return Lookup(OWN, KEY, 10.0, width=width, want_record=want_record)


def _record(identity: Identity, seq: int) -> EndpointRecord:
    endpoints = (Endpoint(Addr("198.18.0.1", 4000)),)
    return sign_record(identity, seq=seq, issued_ms=int(WALL * 1000), ttl=7200, endpoints=endpoints)


# ---- one lookup


def test_a_lookup_asks_four_nodes_a_path_and_another_for_each_slow_one() -> None:
    lookup = _lookup()
    lookup.start(_contacts(NEAREST[:40]))
    first = lookup.take_queries()
    assert len(first) == ALPHA * PATHS
    assert lookup.take_queries() == [], "no more until one of them answers or is slow"
    lookup.on_slow(first[0])
    lookup.on_slow(first[0])
    assert len(lookup.take_queries()) == 1
    lookup.on_answer(first[0], [], b"", None, 11.0)
    assert lookup.take_queries() == [], "its place was taken already"
    lookup.on_answer(first[1], [], b"", None, 11.0)
    assert len(lookup.take_queries()) == 1


def test_a_lookup_ends_when_the_nearest_have_answered_and_asks_no_farther() -> None:
    lookup = _lookup(width=4)
    lookup.start(_contacts(NEAREST[:60]))
    asked: list[Candidate] = []
    while not lookup.done:
        queries = lookup.take_queries()
        assert queries, "what is not over goes on"
        for query in queries:
            asked.append(query)
            lookup.on_answer(query, [], b"", None, 11.0)
    assert len(asked) <= 2 * (4 + ALPHA)
    assert [c.id for c in lookup.closest(4)] == NEAREST[:4]
    assert lookup.take_queries() == []
    assert lookup.unasked(3)[0].id not in {c.id for c in asked}


def test_a_lookup_waits_for_an_answer_that_may_be_nearer_and_not_for_a_farther_one() -> None:
    lookup = _lookup(width=2)
    lookup.start(_contacts(NEAREST[:8]))  # by turns to the two paths, all asked at once
    queries = {query.id: query for query in lookup.take_queries()}
    for near in NEAREST[1:4]:
        lookup.on_answer(queries[near], [], b"", None, 11.0)
    assert not lookup.done, "the nearest of all is still awaited"
    lookup.on_failed(queries[NEAREST[0]])
    assert not lookup.done, "its path has one answer of two"
    lookup.on_answer(queries[NEAREST[4]], [], b"", None, 11.0)
    assert lookup.done, "what is left is farther than two answers of each path"


def test_a_lookup_tells_when_and_after_how_many_hops_it_found_the_first_record() -> None:
    owner = Identity(bytes(32))
    lookup = _lookup(want_record=True)
    lookup.start(_contacts(NEAREST[50:51]))
    (query,) = lookup.take_queries()
    assert not lookup.on_answer(query, _contacts(NEAREST[20:22]), b"", None, 11.0)
    assert (lookup.first, lookup.hops) == (None, 1)
    one, two = lookup.take_queries()
    assert lookup.on_answer(one, _contacts(NEAREST[:1]), b"", _record(owner, 5), 12.0)
    assert (lookup.first, lookup.hops) == (12.0, 2)
    assert not lookup.on_answer(two, [], b"", _record(owner, 4), 13.0), "an older one is no news"
    (last,) = lookup.take_queries()
    assert lookup.on_answer(last, [], b"", _record(owner, 6), 14.0)
    assert (lookup.first, lookup.hops) == (12.0, 2)
    assert lookup.best is not None
    assert lookup.best.seq == 6


def _ever_nearer() -> Iterator[ContactInfo]:
    """Yield nodes of many networks, each nearer to the key than the one before."""
    crowd = sorted((NodeId(random.Random(1_000 + n).randbytes(32)) for n in range(400)), key=lambda each: each.dht_key)
    for n, each in enumerate(reversed(crowd)):
        yield ContactInfo(each, Addr(f"46.{n % 250}.{n // 250}.1", 4242))


def test_a_path_that_a_liar_leads_astray_uses_up_no_request_of_the_other() -> None:
    lookup, lies = _lookup(), _ever_nearer()
    lookup.start([next(lies), *_contacts(NEAREST[150:151])])
    liar, honest = lookup.take_queries()
    asked = [liar]
    while asked:
        for candidate in asked:
            lookup.on_answer(candidate, list(islice(lies, 2)), b"", None, 11.0)
        asked = lookup.take_queries()
    assert not lookup.done, "the honest node's answer is awaited still"
    lookup.on_answer(honest, _contacts(NEAREST[:4]), b"", None, 12.0)
    assert {candidate.id for candidate in lookup.take_queries()} == set(NEAREST[:4])
    assert lookup.rpcs <= DHT_MAX_LOOKUP_RPCS


def test_a_path_that_a_liar_leads_astray_uses_up_no_memory_of_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dht_lookup, "MAX_NAMED", 20)
    lookup, lies = _lookup(), _ever_nearer()
    lookup.start([next(lies), *_contacts(NEAREST[150:151])])
    liar, honest = lookup.take_queries()
    lookup.on_answer(liar, list(islice(lies, 300)), b"", None, 11.0)
    assert len(list(lookup.heard)) <= 2 * 20 + 1
    lookup.on_answer(honest, _contacts(NEAREST[:4]), b"", None, 12.0)
    assert set(NEAREST[:4]) <= {candidate.id for candidate in lookup.take_queries()}


def test_an_address_that_a_liar_invents_for_a_node_hides_it_from_one_path_only() -> None:
    lookup, infos = _lookup(), _contacts(NEAREST)
    lookup.start(infos[150:152])
    liar, honest = lookup.take_queries()
    invented = [ContactInfo(info.id, Addr(f"47.{n}.7.1", 9)) for n, info in enumerate(infos[:4])]
    lookup.on_answer(liar, invented, b"", None, 11.0)
    for candidate in lookup.take_queries():
        lookup.on_failed(candidate)
    lookup.on_answer(honest, infos[:4], b"", None, 12.0)
    asked = lookup.take_queries()
    assert {(candidate.id, candidate.addr) for candidate in asked} == set(infos[:4])
    for candidate in asked:
        lookup.on_answer(candidate, infos[:4], b"", None, 13.0)
    assert [candidate.id for candidate in lookup.closest(4)] == NEAREST[:4]


def test_a_node_that_answers_at_two_addresses_is_one_of_those_found() -> None:
    lookup, infos = _lookup(), _contacts(NEAREST)
    lookup.start(infos[150:152])
    for candidate, addr in zip(lookup.take_queries(), ("47.1.7.1", "47.2.7.1"), strict=True):
        lookup.on_answer(candidate, [ContactInfo(NEAREST[0], Addr(addr, 9))], b"", None, 11.0)
    twice = lookup.take_queries()
    assert [candidate.id for candidate in twice] == [NEAREST[0]] * 2
    for candidate in twice:
        lookup.on_answer(candidate, [], b"", None, 12.0)
    assert [candidate.id for candidate in lookup.closest(4)] == [NEAREST[0], NEAREST[150], NEAREST[151]]


def test_one_that_fails_at_the_end_of_a_lookup_keeps_no_other_from_being_told() -> None:
    dht, told = Dht(OWN, rng=random.Random(1), entropy=bytes, metrics=Metrics(), wall=WALL), list[float]()

    def fails(now: float) -> None:
        raise RuntimeError("a fault")

    for done in (fails, told.append):
        dht.statements.find(KEY, 1.0, done)
    with pytest.raises(RuntimeError, match="a fault"):
        dht.tick(1.0, WALL + 1.0)
    assert told == [1.0]


# ---- the table and the round trips


def test_a_contact_goes_after_three_failures_in_a_row_or_two_when_another_stands_by() -> None:
    assert EVICT_AFTER == 3
    table = Table(OWN)
    peers = _contacts(NEAREST[:3])
    for peer in peers:
        table.answered(*peer)
    first = peers[0].id
    assert [table.failed(first, evict=True) for _ in range(2)] == [False, False]
    table.answered(*peers[0])
    assert [table.failed(first, evict=True) for _ in range(3)] == [False, False, True], "an answer makes good"
    assert table.get(first) is None
    assert [table.failed(peers[1].id, evict=False) for _ in range(5)] == [False] * 5


def test_a_change_of_the_table_is_told_by_its_version() -> None:
    table = Table(OWN)
    (peer,) = _contacts(NEAREST[:1])
    versions = [table.version]
    for change in (
        lambda: table.answered(*peer),
        lambda: table.failed(peer.id, evict=True),
        lambda: table.answered(*peer),
        lambda: table.answered(peer.id, Addr("45.9.9.9", 1)),
        lambda: table.ban(peer.id, 1.0),
    ):
        change()
        versions.append(table.version)
    assert len(set(versions)) == len(versions)
    table.ban(peer.id, 1.0)
    assert table.version == versions[-1]


def test_a_token_is_used_while_any_holder_would_honour_it() -> None:
    contact = Table(OWN).answered(*_contacts(NEAREST[:1])[0])
    assert contact is not None
    assert contact.fresh_token(1000.0) == b""
    contact.token, contact.token_at = b"token", 1000.0
    assert contact.fresh_token(1000.0 + TOKEN_LIFE_S - 1) == b"token"
    assert contact.fresh_token(1000.0 + TOKEN_LIFE_S + 1) == b""


def test_a_bucket_of_this_nodes_own_neighbourhood_is_split_and_keeps_its_contacts() -> None:
    table = Table(OWN)
    own = int.from_bytes(OWN.dht_key, "big")
    by_distance = sorted(NEAREST, key=lambda each: int.from_bytes(each.dht_key, "big") ^ own)
    for contact in _contacts(by_distance):
        table.answered(*contact)
    assert {c.node_id for c in table.contacts()} >= set(by_distance[:K])
    assert all(b.range[0] <= c.long_id <= b.range[1] for b in table.buckets for c in b.nodes.values())
    assert [c.node_id for c in table.closest(OWN.dht_key, K)] == by_distance[:K]


def test_waits_follow_the_round_trips_of_the_peer_and_of_all_for_a_stranger() -> None:
    book = RttBook()
    assert rto(book.of(NEAREST[0])) == INITIAL_RTO_S
    for _ in range(20):
        book.sample(NEAREST[0], 0.02)
        book.sample(NEAREST[1], 0.4)
    assert rto(book.of(NEAREST[0])) == MIN_RTO_S
    assert 0.4 <= rto(book.of(NEAREST[1])) < 0.6
    assert rto(book.of(NEAREST[2])) == rto(book.overall) > MIN_RTO_S
    assert book.urgent(NEAREST[1], 3) == pytest.approx([0.4, 0.8, 1.6], rel=0.3)
    assert sum(book.patient(NEAREST[1])) > sum(book.patient(NEAREST[0]))
    book.forget()
    assert rto(book.of(NEAREST[1])) == INITIAL_RTO_S


# ---- bounds of what is kept for others


def test_of_a_mesh_that_answers_late_a_node_that_moves_remembers_that_and_nothing_else() -> None:
    for rtt, first, kept in ((0.1, URGENT_FIRST_S, False), (2.0, MAX_URGENT_FIRST_S, True)):
        net, nodes = _mesh(2)
        rpcs = nodes[0].dht._shared.rpcs
        budget, other = rpcs.budget, nodes[1].id
        for _ in range(8):
            rpcs.rtts.sample(other, rtt)
        nodes[0].dht.rewatch_all(net.now)
        assert rpcs.rtts.of(other).srtt is None
        assert rpcs.rtts.urgent(other, 2) == (first, 2 * first)
        assert (rpcs.budget is budget) is kept
        rpcs.forget_place()
        assert rpcs.rtts.urgent(other, 1) == (first,), "nothing was heard meanwhile"
        rpcs.rtts.sample(other, 0.1)
        rpcs.forget_place()
        assert rpcs.rtts.urgent(other, 1) == (URGENT_FIRST_S,)
        assert rpcs.budget is not budget


def test_a_watcher_may_watch_so_many_keys_and_then_its_oldest_goes() -> None:
    watchers = Watchers()

    def add(number: int) -> bool:
        watcher = Watcher(NEAREST[0], Addr("198.18.0.1", 1), 90.0, 0, proven=True, credit=0)
        return watchers.add(number.to_bytes(20, "big"), watcher, 0.0)

    assert [add(n) for n in range(DHT_MAX_WATCHES_PER_SENDER + 2)].count(False) == 0
    assert len(watchers) == DHT_MAX_WATCHES_PER_SENDER
    assert [watchers.get(n.to_bytes(20, "big"), NEAREST[0]) is None for n in range(3)] == [True, True, False]
    for number in range(1_000):
        watchers.remove(number.to_bytes(20, "big"), NEAREST[0])
        assert watchers.get(number.to_bytes(20, "big"), NEAREST[0]) is None
    assert len(watchers) == 0
    assert add(1)


# ---- two or three nodes


def _mesh(count: int) -> tuple[Net, list[SimNode]]:
    """Nodes that have all met the first one, and come to rest."""
    net = Net(4)
    nodes = [net.add() for _ in range(count)]
    for node in nodes[1:]:
        net.join(node, [nodes[0]])
    net.run(30.0)
    return net, nodes


def _told(node: SimNode, kind: type) -> list[object]:
    return [effect for _, effect in node.log if isinstance(effect, kind)]


def test_a_node_is_told_at_how_many_holders_its_record_is() -> None:
    net, nodes = _mesh(4)
    net.publish(nodes[1])
    net.run(2.0)
    assert _told(nodes[1], Published)[-1] == Published(3)
    for node in nodes[2:]:
        assert node.dht.counts()["records"] == 1
    net.publish(nodes[1])
    net.run(2.0)
    assert _told(nodes[1], Published)[-1] == Published(3)


def test_contacts_that_changed_are_told_and_those_that_did_not_are_not() -> None:
    net, nodes = _mesh(3)
    told = len(_told(nodes[0], ContactsChanged))
    assert told >= 1
    net.run(20.0)
    assert len(_told(nodes[0], ContactsChanged)) == told
    net.join(net.add(), [nodes[0]])
    net.run(20.0)
    assert len(_told(nodes[0], ContactsChanged)) > told


def test_a_node_joins_once_and_asks_little_while_nothing_changes() -> None:
    net, nodes = _mesh(3)
    asked = nodes[1].metrics.counters["dht_lookups"]
    assert asked <= 6, "one, and four while others may join in the same second"
    net.run(300.0)
    assert nodes[1].metrics.counters["dht_lookups"] == asked


def test_a_watch_that_was_given_up_is_told_to_its_holders_and_no_record_is_pushed() -> None:
    net, nodes = _mesh(4)
    owner, watcher = nodes[1], nodes[2]
    net.publish(owner)
    net.run(2.0)
    watcher.dht.watch(owner.id, net.now)
    net.pump(watcher)
    net.run(2.0)
    assert sum(node.dht.counts()["watchers"] for node in nodes) >= 2
    net.publish(owner)
    net.run(1.0)
    pushed = len(_told(watcher, RecordPushed))
    assert pushed >= 1
    timeouts = watcher.metrics.counters.get("dht_timeouts", 0)
    watcher.dht.unwatch(owner.id, net.now)
    net.pump(watcher)
    net.run(5.0)
    assert sum(node.dht.counts()["watchers"] for node in nodes) == 0
    assert watcher.metrics.counters.get("dht_timeouts", 0) == timeouts, "each holder has said that it heard"
    net.publish(owner)
    net.run(1.0)
    assert len(_told(watcher, RecordPushed)) == pushed


def test_a_watch_without_a_holder_looks_for_one_in_pauses_that_grow() -> None:
    net, nodes = _mesh(2)
    nodes[1].dht.watch(NEAREST[0], net.now)
    net.kill(nodes[0])
    net.pump(nodes[1])
    net.run(5.0)
    asked = nodes[1].metrics.counters["dht_lookups"]
    net.run(600.0)
    more = nodes[1].metrics.counters["dht_lookups"] - asked
    assert 5 <= more <= 60, "twice a minute and at first more often, not in a loop"


def test_a_node_takes_nothing_of_its_own_id_and_nothing_from_an_impossible_address() -> None:
    net, nodes = _mesh(2)
    taken = nodes[0].dht.counts()
    body = b"\x10"
    nodes[0].dht.handle(nodes[0].id, body, nodes[1].addr, 100, net.now, net.wall())
    nodes[0].dht.handle(nodes[1].id, body, Addr("224.0.0.1", 5), 100, net.now, net.wall())
    counters = nodes[0].metrics.counters
    assert (counters["dht_from_self"], counters["dht_bad_source"], counters.get("dht_malformed", 0)) == (1, 1, 0)
    assert nodes[0].dht.counts() == taken


def test_a_lookup_that_was_cancelled_tells_nothing_and_one_that_was_not_ends() -> None:
    net, nodes = _mesh(4)
    net.publish(nodes[1])
    net.run(1.0)
    nodes[1].alive = False
    kept = nodes[3].dht.lookup(NEAREST[0], net.now)
    cancelled = nodes[3].dht.lookup(NEAREST[1], net.now)
    nodes[3].dht.cancel(cancelled)
    nodes[3].dht.cancel(cancelled)
    net.pump(nodes[3])
    assert nodes[3].dht.counts()["lookups"] == 1
    net.run(20.0)
    assert [e.lookup_id for e in _told(nodes[3], LookupDone) if isinstance(e, LookupDone)] == [kept]
    assert nodes[3].dht.counts()["lookups"] == 0


def test_a_watch_that_follows_a_lookup_gets_its_end_also_when_the_lookup_is_cancelled() -> None:
    net, nodes = _mesh(24)
    asker = net.add()
    asker.dht.add_contact_hint(nodes[0].id, nodes[0].addr, net.now)  # no seed, which is asked beside the lookup
    net.pump(asker)
    net.run(10.0)
    for owner in nodes[1:]:
        held = asker.dht.counts()["records"]
        net.publish(owner)
        net.run(2.0)
        if asker.dht.counts()["records"] == held:
            break  # one whose record others hold
    number = asker.dht.lookup(owner.id, net.now)
    asker.dht.watch(owner.id, net.now)
    asker.dht.cancel(number)
    net.pump(asker)
    net.run(2.0)
    assert [e.record.seq for e in _told(asker, RecordPushed) if isinstance(e, RecordPushed)] == [owner.seq]
    assert not [e for e in _told(asker, Found) if isinstance(e, Found) and e.lookup_id == number]


def test_a_slow_answer_has_another_node_asked_long_before_it_counts_as_lost() -> None:
    net, nodes = _mesh(20)
    asker = nodes[3]
    for node in nodes:
        node.alive = node is asker
    asked, lost = (asker.metrics.counters.get(name, 0) for name in ("dht_rpcs", "dht_timeouts"))
    asker.dht.lookup(NEAREST[0], net.now)
    net.pump(asker)
    assert asker.metrics.counters["dht_rpcs"] - asked == ALPHA * PATHS
    while asker.metrics.counters["dht_rpcs"] - asked == ALPHA * PATHS:
        net.run(0.005)
    assert asker.metrics.counters.get("dht_timeouts", 0) == lost


def test_a_node_near_the_key_that_answers_without_the_record_is_given_it() -> None:
    net, nodes = _mesh(4)
    owner, asker = nodes[1], nodes[2]
    net.publish(owner)
    net.run(2.0)
    net.kill(owner)
    late = net.add()
    net.join(late, [nodes[0]])
    net.run(10.0)
    assert late.dht.counts()["records"] == 0
    found, _, _ = net.resolve(asker, owner.id)
    assert found is not None
    net.run(2.0)
    assert late.dht.counts()["records"] == 1
    assert net.resolve(late, owner.id)[0] is not None


def test_each_answer_that_came_without_a_retransmission_is_a_round_trip_measured() -> None:
    net, nodes = _mesh(3)
    rtts = nodes[1].dht._shared.rpcs.rtts
    for other in (nodes[0], nodes[2]):
        assert 2 * net.base <= (rtts.of(other.id).srtt or 0.0) <= 2.2 * (net.base + 1.5 * net.spread)
