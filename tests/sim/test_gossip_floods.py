"""Floods of entries of ever new origins, in virtual time: what they leave of the entries of honest nodes."""

from __future__ import annotations

import pytest

from meshnode.gossip import Entry, Kind
from meshnode.gossip.entry import sign_entry
from meshnode.gossip.messages import Eager
from meshnode.identity.keys import Identity
from meshnode.trust.authority import pack_chain
from tests.sim.gossip_sim import EPOCH, GossipNet, GossipNode
from tests.sim.test_grants import Mesh

LIMIT = 128  # of a kind, instead of GOSSIP_MAX_STORED
A_FRAME = 9


def _mesh(seed: int, count: int) -> GossipNet:
    """A settled mesh with small stores."""
    net = GossipNet(seed, delay=0.02)
    net.store_limit = LIMIT
    for number in range(count):
        node = net.add()
        if number:
            net.join(node, net.nodes[0])
        net.announce(node)
        net.run(0.1)
    net.run(15.0)
    net.unfollow()
    return net


def _throw_away(net: GossipNet, names: int, *, ahead: float = 0.0, ttl: int = 86_400, kind: int = 8) -> list[bytes]:
    """Entries of a new origin, with the numbers that would win by age: dated ahead, and long-lived."""
    origin, at = Identity(net.rng.randbytes(32)), int((EPOCH + net.now + ahead) * 1000)
    made = [
        sign_entry(origin, kind=kind, name=f"x{n}", seq=at, issued_ms=at, ttl=ttl, value=b"x").encoded
        for n in range(names)
    ]
    return made


def _flood(net: GossipNet, sources: list[GossipNode], ids: int, names: int, **entries: float) -> None:
    """Send entries of that many ids over all links of ``sources``, as fast as links take them."""
    for n in range(ids):
        source = sources[n % len(sources)]
        made = _throw_away(net, names, **entries)  # type: ignore[arg-type]
        for peer in list(source.gossip.hyparview.active):
            for begin in range(0, len(made), A_FRAME):
                frame = tuple((1, encoded) for encoded in made[begin : begin + A_FRAME])
                net._send(source, peer, Eager(b"", frame))
        net.run(0.02)


def _missing(nodes: list[GossipNode], entries: list[Entry]) -> int:
    return sum(node.gossip.store.by_id(entry.id) is None for node in nodes for entry in entries)


@pytest.mark.parametrize(("ids", "names"), [(10, 54), (400, 1), (60, 9)])
@pytest.mark.parametrize("attackers", [1, 3])
def test_what_honest_nodes_offer_stays_everywhere_whatever_throw_away_origins_send(
    ids: int, names: int, attackers: int
) -> None:
    net = _mesh(1, 8)
    bad, honest = net.nodes[-attackers:], net.nodes[:-attackers]
    entries = [net.publish(node, f"service{n}", b"here") for node in honest for n in range(5)]
    net.run(2.0)
    assert _missing(honest, entries) == 0
    _flood(net, bad, ids, names, ahead=250.0)
    net.run(30.0)
    assert _missing(honest, entries) == 0
    for node in honest:
        assert sum(1 for _ in node.gossip.store.entries(Kind.SERVICE)) <= LIMIT


def test_a_newcomer_is_heard_everywhere_while_a_flood_goes_on() -> None:
    net = _mesh(2, 8)
    bad, honest = net.nodes[-1:], net.nodes[:-1]
    _flood(net, bad, 300, 1)
    new = net.add()
    net.join(new, honest[0])
    net.announce(new)
    for _ in range(10):
        _flood(net, bad, 20, 1)
    entry = net.publish(new, "late", b"here")
    for _ in range(3):
        _flood(net, bad, 20, 1)
    heard = [node for node in honest if entry.id in node.gossip.plumtree.seen]
    assert len(heard) == len(honest)
    direct = [node for node in honest if new.id in node.gossip.hyparview.active]
    assert direct
    assert _missing(direct, [entry]) == 0, "those that it is connected to keep it"


def test_when_a_flood_is_over_neighbours_do_not_exchange_what_does_not_fit_for_ever() -> None:
    net = _mesh(3, 6)
    _flood(net, net.nodes[-1:], 300, 1)
    net.run(60.0)
    before = net.messages
    net.run(60.0)
    busy = net.messages - before
    quiet = _mesh(3, 6)
    quiet.run(60.0)
    before = quiet.messages
    quiet.run(60.0)
    assert busy < 2 * (quiet.messages - before)


def test_while_a_member_floods_the_others_hear_each_other_as_fast_as_ever() -> None:
    net = _mesh(4, 8)
    bad, honest = net.nodes[-1:], net.nodes[:-1]
    for _ in range(60):  # the budget of a burst is spent
        for peer in list(bad[0].gossip.hyparview.active):
            frame = tuple((1, encoded) for encoded in _throw_away(net, 60))
            net._send(bad[0], peer, Eager(b"", frame))
    net.run(0.2)
    entry = net.announce(honest[2])
    for _ in range(10):
        for peer in list(bad[0].gossip.hyparview.active):
            net._send(bad[0], peer, Eager(b"", tuple((1, encoded) for encoded in _throw_away(net, 60))))
        net.run(0.1)
    assert max(node.metrics.counters.get("gossip_drop_busy", 0) for node in honest) > 0
    assert _missing(honest, [entry]) == 0
    assert net.delays(entry)[-2] < 0.5


def test_a_member_that_pushes_more_than_any_honest_node_is_cut_off_and_no_honest_one_is() -> None:
    net = _mesh(5, 8)
    bad, honest = net.nodes[-1], net.nodes[:-1]
    for _ in range(80):
        for peer in list(bad.gossip.hyparview.active):
            for _ in range(10):
                made = _throw_away(net, 2) * 30
                net._send(bad, peer, Eager(b"", tuple((1, encoded) for encoded in made)))
        net.run(0.1)
    assert any(node.gossip.reputation.is_banned(bad.id, net.now) for node in honest)
    for node in honest:
        assert all(not node.gossip.reputation.is_banned(other.id, net.now) for other in honest)
    assert net.is_connected(honest)


def test_a_crowds_grants_leave_those_of_members_that_gossip_still_keeps() -> None:
    mesh = Mesh()
    server, far, liar = (mesh.node("db", gossip=True) for _ in range(3))
    assert server.mesh.gossip is not None
    server.mesh.gossip.core.store._limit = server.mesh.context.heard.bound = 16  # of GOSSIP_MAX_STORED
    for node in (far, liar):
        node.join(server)
    mesh.world.run(20.0)
    heard = server.mesh.context.heard
    assert far.id in heard
    for n in range(100):
        one = Identity(n.to_bytes(32, "big"))
        at = int(mesh.world.wall() * 1000)
        value = pack_chain(mesh.grant(one, "web"))
        entry = sign_entry(one, kind=Kind.GRANTS, name="", seq=at, issued_ms=at, ttl=3600, value=value)
        server.mesh.gossip.core.on_message(liar.id, Eager(b"", ((1, entry.encoded),)), mesh.world.now)
        server.on_dirty()
        mesh.world.run(0.1)
    mesh.world.run(1.0)  # the last ones wait for their turn
    kept = [entry.origin for entry in server.mesh.gossip.entries.stored(Kind.GRANTS)]
    assert far.id in kept
    assert len(kept) == 16
    assert set(heard) == set(kept) - {server.id}
    assert server.mesh.context.standings.caller(far.id).roles == {"db"}
