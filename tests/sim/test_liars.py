"""Hostile relays, peers and observers in virtual time: what they cannot make others do."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from meshnode.base.address import Addr, pack_addr
from meshnode.base.limits import (
    HOST_ALLOWANCE,
    HOST_ALLOWANCE_PER_S,
    SEARCH_PROBES,
    SEARCH_SIDES,
    SEARCH_TRIES,
    SEEN_BURST,
    SEEN_PER_S,
)
from meshnode.base.path import Path, ViaSocket
from meshnode.identity.node_id import NodeId
from meshnode.identity.sealing import SEAL_OVERHEAD
from meshnode.quic.hello import CloseCode, Frame
from meshnode.sim.nat import PRESETS
from meshnode.sim.world import SimNode
from meshnode.stack import probe
from tests.sim.test_relays import _complete, _count, _mesh
from tests.sim.test_traversal import Pair

VICTIM = Addr("203.0.113.77", 53)


def _to(world: object, host: str) -> list[Addr]:
    """All that send to this host from now on."""
    seen: list[Addr] = []
    deliver: Callable[..., None] = world.deliver  # type: ignore[attr-defined]

    def watch(source, to, datagram, nat=None):  # type: ignore[no-untyped-def]
        if to.host == host:
            seen.append(source)
        deliver(source, to, datagram, nat)

    world.deliver = watch  # type: ignore[attr-defined]
    return seen


def test_a_punch_request_that_names_a_victim_that_never_asked_sends_it_nothing() -> None:
    world, seeds, here, victim = _mesh(relays=1)
    relay = here.mesh.sessions[seeds[0].id].connection
    assert relay is not None
    seen = _to(world, victim.addr.host)
    world.run(0.5)
    quiet = len(seen)
    for _ in range(50):
        relay.send_frame(Frame.INTRODUCE, bytes(victim.id))
        relay.send_frame(Frame.SEARCH)
    world.run(0.5)
    assert here.addr not in seen[quiet:]
    assert len(seen) - quiet <= quiet + 2, "no more than what the relay says to it anyway"
    assert all(n.mesh.metrics.counters.get("port_search_probes", 0) == 0 for n in (here, *seeds))
    assert seeds[0].mesh.metrics.counters["port_searches_refused"] == 50


def test_an_introduction_by_a_strange_relay_or_to_a_peer_without_session_sends_nothing() -> None:
    world, seeds, here, there = _mesh(relays=1)
    seen = _to(world, VICTIM.host)
    link = seeds[0].mesh.sessions[here.id].connection
    assert link is not None
    for stranger in (there.id, seeds[0].id):
        link.send_frame(Frame.INTRODUCED, bytes(stranger), pack_addr(VICTIM), 0)
    world.run(3.0)
    assert len(seen) == 0 or stranger == seeds[0].id
    assert here.mesh.metrics.counters["drop_relay_control"] >= 1


def test_a_relay_that_introduces_without_end_makes_no_node_flood() -> None:
    world, seeds, here, there = _mesh(relays=1)
    here.connect(there.id)
    world.run(1.0)
    link = seeds[0].mesh.sessions[here.id].connection
    assert link is not None
    seen = _to(world, VICTIM.host)
    began = world.now
    for port in range(1, 2_001):
        link.send_frame(Frame.INTRODUCED, bytes(there.id), pack_addr(Addr(VICTIM.host, port)), 0)
        if port % 100 == 0:
            world.run(0.1)
    assert here.mesh.metrics.counters["introductions_too_often"] > 1_900
    allowance = HOST_ALLOWANCE / 2 + HOST_ALLOWANCE_PER_S * (world.now - began)
    assert 0 < len(seen) * (probe.MIN_PING + SEAL_OVERHEAD) <= allowance


def test_a_lying_relay_alone_cannot_aim_a_port_search() -> None:
    pair = Pair(PRESETS["port_restricted"], PRESETS["symmetric"])
    seen = _to(pair.world, VICTIM.host)
    for seed in pair.seeds:  # both say that every node is where the victim is

        def lie(asker, fields, now, relaying=seed.mesh.context.serving):  # type: ignore[no-untyped-def]
            for one, other in ((pair.here, pair.there), (pair.there, pair.here)):
                session = relaying._context.peers.sessions.get(one.id)
                if session is not None and session.connection is not None:
                    session.connection.send_frame(Frame.INTRODUCED, bytes(other.id), pack_addr(VICTIM), 0)

        seed.mesh.context.serving._on_introduce = lie  # type: ignore[method-assign]
    pair.open()
    pair.world.run(10.0)
    assert pair.total("introductions") > 0
    assert pair.total("port_search_probes") == 0, "the peer's own record names another host"
    assert len(seen) <= 2 * 24 * 4, "only the ordinary probes, at 75 ms, of a few rounds"


def _search_in_vain() -> Pair:
    """Two nodes of which one asks for searches that are never won: its own sockets never send."""
    pair = Pair(PRESETS["port_restricted"], PRESETS["symmetric"])
    pair.there.send = lambda path, datagrams: (  # type: ignore[method-assign]
        True if isinstance(path, ViaSocket) else SimNode.send(pair.there, path, datagrams)
    )
    pair.there.mesh.context.link.send = pair.there.send  # type: ignore[method-assign]
    pair.open()
    return pair


def test_a_new_connection_brings_no_new_searches_at_the_same_host() -> None:
    pair = _search_in_vain()
    here = pair.here.mesh
    for _ in range(3):
        for _ in range(100):
            session = pair.there.mesh.sessions.get(pair.here.id)
            if session is not None and session.connection is not None:
                session.connection.send_frame(Frame.SEARCH)
            pair.world.run(0.2)
        connection = here.context.peers.connection(pair.there.id)
        assert connection is not None
        connection.close(CloseCode.SHUTDOWN, "")
        pair.here.on_dirty()
        pair.world.run(1.0)
        pair.here.connect(pair.there.id)
    assert here.metrics.counters["port_searches_sprayed"] == SEARCH_TRIES
    assert here.metrics.counters["port_search_probes"] <= SEARCH_TRIES * SEARCH_PROBES


def test_however_often_a_peer_asks_for_a_search_the_probes_are_bounded() -> None:
    pair = _search_in_vain()
    seen = _to(pair.world, "198.51.100.11")
    began = pair.world.now
    for tenth in range(200):
        session = pair.there.mesh.sessions[pair.here.id]
        if session.connection is not None:
            session.connection.send_frame(Frame.SEARCH)
        pair.world.run(0.1 if tenth else 0.0)
    probes = sum(1 for source in seen if source == pair.here.addr)
    assert pair.here.mesh.metrics.counters["port_searches_refused"] > 100
    assert pair.total("port_searches_sprayed") <= 4
    assert probes <= 4 * SEARCH_PROBES + 500
    assert pair.world.now - began > 19
    assert pair.there.mesh.metrics.counters["port_search_probes"] <= 4 * SEARCH_SIDES


def test_a_forged_observed_address_moves_no_path_and_no_node() -> None:
    world, seeds, here, there = _mesh(relays=1)
    world.partition(here.addr.host, there.addr.host, cut=False)
    stream, inbox = here.open(here.connect(there.id))
    _count(world, stream, 600)
    world.run(1.0)
    active = (here.mesh.sessions[there.id].paths.active, there.mesh.sessions[here.id].paths.active)

    def forge(sender, body, source, now):  # type: ignore[no-untyped-def]
        ping = probe.decode_ping(body)
        assert ping is not None
        pong = probe.encode_pong(probe.Pong(0, ping.tx, VICTIM))
        seeds[0].mesh.context.sender.send_sealed(sender, source, pong)

    seeds[0].mesh.probing.on_ping = forge  # type: ignore[method-assign]
    seen = _to(world, VICTIM.host)
    for node in (here, there):  # an echo to the seed, as a moved node would send
        link = node.mesh.sessions[seeds[0].id].connection
        assert link is not None
        node.mesh.ping(link, 1.0, world.now, lambda _: None)
    world.run(8.0)
    assert str(VICTIM) in str(here.mesh.nat.to_json(world.now)["observed"]), "the lie was heard"
    assert (here.mesh.sessions[there.id].paths.active, there.mesh.sessions[here.id].paths.active) == active
    assert _complete(inbox, 600)
    assert len(seen) < 60, "probes of a hint, no traffic"


@pytest.mark.parametrize("asked", [False, True])
def test_a_peer_that_sees_this_node_ever_elsewhere_has_it_tell_all_others_few_times(asked: bool) -> None:
    world, seeds, here, _ = _mesh(relays=1)
    assert here.mesh.record is not None
    before, said, liar = here.mesh.record.seq, set[int](), seeds[0].mesh
    elsewhere = (Addr(VICTIM.host, port) for port in count(1_000))

    def forge(sender: NodeId, body: bytes, source: Path, now: float) -> None:
        pong = probe.Pong(0, body[2:10], next(elsewhere))
        liar.context.sender.send_sealed(sender, source, probe.encode_pong(pong))

    if asked:
        liar.probing.on_ping = forge  # type: ignore[method-assign]
    connection = here.mesh.sessions[liar.id].connection
    assert connection is not None
    for _ in range(200):
        if asked:
            here.mesh.ping(connection, 1.0, world.now, lambda _: None)
        else:
            forge(here.id, bytes(10), here.addr, world.now)
        world.run(0.1)
        said.add(here.mesh.record.seq)
    said.discard(before)
    assert len(said) <= (SEEN_BURST + 2 * 20.0 * SEEN_PER_S + 2 if asked else 0)


@pytest.mark.parametrize("sin", ["drops half", "delays 150 ms", "repeats everything", "drops everything"])
def test_a_bad_relay_is_left_within_two_seconds(sin: str) -> None:
    world, seeds, here, there = _mesh()
    stream, inbox = here.open(here.connect(there.id))
    _count(world, stream, 600)
    world.run(1.0)
    active = str(here.mesh.sessions[there.id].paths.active)
    bad = next(s for s in seeds if str(s.id) in active)
    outbox = bad.send

    def sinful(addr, datagrams):  # type: ignore[no-untyped-def]
        for datagram in datagrams:
            if datagram[0] != 0x02:
                outbox(addr, [datagram])
            elif sin == "delays 150 ms":
                world.at(world.now + 0.15, lambda d=datagram: outbox(addr, [d]))  # type: ignore[misc]
            elif sin == "repeats everything":
                outbox(addr, [datagram, datagram])
            elif sin == "drops half" and world.rng.random() < 0.5:
                outbox(addr, [datagram])
        return True

    bad.mesh.context.link.send = sinful  # type: ignore[method-assign]
    assert world.run(2.0, lambda: str(here.mesh.sessions[there.id].paths.active) != active)
    world.run(12.0)
    assert _complete(inbox, 600)
