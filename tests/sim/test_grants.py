"""A mesh with an authority, in virtual time: who is admitted, by which end, and until when."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshnode.base.limits import GRANT_SKEW_S
from meshnode.discovery.resolver import Resolved
from meshnode.errors import MeshError, PolicyDenied
from meshnode.gossip.entry import Kind
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection, State
from meshnode.quic.hello import CloseCode, Frame
from meshnode.quic.stream import Stream
from meshnode.sim.link import ModelEngines
from meshnode.sim.plain import PlainSealer
from meshnode.sim.world import EPOCH, SimNode, Weather, World
from meshnode.trust.authority import Issuer
from meshnode.trust.chain import Chain
from meshnode.trust.grant import Delegation, open_grant
from meshnode.trust.parties import parse_parties
from meshnode.trust.redemptions import Uses
from meshnode.trust.revocation import sign_revocation
from meshnode.trust.ticket import Ticket, make_ticket, redeem

AUTHORITY = Issuer(Identity(b"A" * 32))
MS = int(EPOCH * 1000)
HOUR = 3_600_000


class Mesh:
    """Nodes of one mesh; each has a grant, unless its test says otherwise."""

    def __init__(self) -> None:
        self.world = World(1, Weather(delay=0.02))
        self.engines = ModelEngines(self.world.entropy)

    def node(self, *roles: str, chain: Chain | None = None, identity: Identity | None = None, **more: Any) -> SimNode:
        identity = identity or Identity(self.world.entropy(32))
        if chain is None:
            chain = self.grant(identity, *roles)
        more = {"authority": AUTHORITY.identity.id, "sealer": PlainSealer, "grants": chain} | more
        return SimNode(self.world, f"10.0.0.{len(self.world.nodes) + 1}", self.engines, identity=identity, **more)

    def grant(self, identity: Identity, *roles: str, expires: int = MS + HOUR) -> Chain:
        return AUTHORITY.issue(identity.id, roles=roles, not_before=MS, expires=expires, entropy=self.world.entropy)

    def dial(self, dialler: SimNode, listener: SimNode) -> Connection | MeshError:
        dialler.join(listener)
        found: list[Connection | MeshError] = []
        dialler.mesh.connect(listener.id, self.world.now, found.append)
        dialler.on_dirty()
        assert self.world.run(10.0, lambda: bool(found)), "neither a connection nor a reason"
        self.world.run(0.5)
        return found[0]

    def connection(self, one: SimNode, other: SimNode) -> Connection:
        found = one.mesh.context.peers.connection(other.id)
        assert found is not None
        return found


def test_both_ends_know_the_others_roles_once_they_are_connected() -> None:
    mesh = Mesh()
    one, other = mesh.node("web"), mesh.node("db", "ops")
    assert isinstance(mesh.dial(one, other), Connection)
    assert one.mesh.context.standings.caller(other.id).roles == {"db", "ops"}
    assert other.mesh.context.standings.caller(one.id).roles == {"web"}


def _expired(mesh: Mesh, identity: Identity) -> Chain:
    return mesh.grant(identity, expires=MS - int(GRANT_SKEW_S * 1000) - 1)


BAD: dict[str, Any] = {
    "no grant": lambda mesh, identity: (),
    "another node's": lambda mesh, identity: mesh.grant(Identity(b"x" * 32), "web"),
    "another mesh's": lambda mesh, identity: Issuer(Identity(b"B" * 32)).issue(
        identity.id, not_before=MS, expires=MS + HOUR, entropy=mesh.world.entropy
    ),
    "a forged one": lambda mesh, identity: (bytes(64) + mesh.grant(identity, "web")[0][64:],),
}
TEXTS = {
    "no grant": "no grant of this mesh's authority",
    "another node's": "for another key",
    "another mesh's": "of another authority",
    "a forged one": "forged",
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("at", ["dialler", "listener"])
def test_a_node_without_a_grant_that_holds_is_refused_at_either_end_and_told_why(what: str, at: str) -> None:
    mesh = Mesh()
    identity = Identity(mesh.world.entropy(32))
    bad = mesh.node(chain=BAD[what](mesh, identity), identity=identity)
    good = mesh.node("web")
    outcome = mesh.dial(bad, good) if at == "dialler" else mesh.dial(good, bad)
    assert isinstance(outcome, PolicyDenied)
    assert TEXTS[what] in outcome.message
    for one, other in ((bad, good), (good, bad)):
        assert one.mesh.context.peers.connection(other.id) is None
    assert good.mesh.metrics.counters["refused_grant"] == 1
    assert good.mesh.context.standings._held == {}


def test_an_expired_grant_is_refused() -> None:
    mesh = Mesh()
    good, identity = mesh.node(), Identity(mesh.world.entropy(32))
    mesh.world.run(3_600 + GRANT_SKEW_S + 1)
    late = mesh.node(chain=mesh.grant(identity), identity=identity)
    good.mesh.context.grants = mesh.grant(good.mesh.context.identity, expires=MS + 2 * HOUR)
    outcome = mesh.dial(late, good)
    assert isinstance(outcome, PolicyDenied)
    assert "expired" in outcome.message


def test_nothing_is_served_to_a_dialler_that_sends_data_before_it_is_refused() -> None:
    mesh = Mesh()
    identity = Identity(mesh.world.entropy(32))
    bad, good = mesh.node(chain=(), identity=identity), mesh.node()
    opened: list[Stream] = []
    good.on_stream_opened = opened.append
    mesh.dial(bad, good)
    assert opened == []


def test_a_node_without_a_grant_has_its_part_of_the_dht_and_nothing_else_of_the_mesh() -> None:
    mesh = Mesh()
    members = [mesh.node("web", gossip=True) for _ in range(4)]
    for one in members[1:]:
        assert isinstance(mesh.dial(one, members[0]), Connection)
    bare = mesh.node(chain=(), gossip=True)
    assert isinstance(mesh.dial(bare, members[0]), PolicyDenied)
    mesh.world.run(30.0)
    answers: list[object] = []
    bare.mesh.resolve(members[3].id, mesh.world.now, answers.append)
    members[3].mesh.resolve(bare.id, mesh.world.now, answers.append)
    for node in (bare, members[3]):
        node.on_dirty()
    assert mesh.world.run(30.0, lambda: len(answers) == 2)
    assert all(isinstance(answer, Resolved) for answer in answers), "the secret alone admits to the DHT"
    assert not bare.mesh.sessions or all(each.connection is None for each in bare.mesh.sessions.values())
    assert isinstance(mesh.dial(members[3], bare), PolicyDenied)
    assert _members(bare) <= {bare.id}, "no entry of gossip reaches it: no member, service, name or role"
    assert all(bare.id not in _members(node) for node in members)
    assert _members(members[3]) == {node.id for node in members}


def _members(node: SimNode) -> set[NodeId]:
    assert node.mesh.gossip is not None
    return {entry.origin for entry in node.mesh.gossip.core.store.entries(Kind.MEMBER)}


def test_where_the_mesh_secret_admits_grants_only_give_roles() -> None:
    mesh = Mesh()
    identity = Identity(mesh.world.entropy(32))
    plain, good = mesh.node(chain=(), identity=identity), mesh.node("web")
    for node in (plain, good):
        object.__setattr__(node.mesh.context.settings, "needs_grant", False)
    assert isinstance(mesh.dial(plain, good), Connection)
    assert good.mesh.context.standings.caller(plain.id).roles == frozenset()
    other = mesh.node("db")
    object.__setattr__(other.mesh.context.settings, "needs_grant", False)
    mesh.dial(good, other)
    assert other.mesh.context.standings.caller(good.id).roles == {"web"}


def test_a_connection_ends_when_the_grant_of_one_end_expires_and_not_before() -> None:
    mesh = Mesh()
    identity = Identity(mesh.world.entropy(32))
    brief = mesh.node(chain=mesh.grant(identity, "web", expires=MS + 30_000), identity=identity)
    good = mesh.node("db")
    connection = mesh.dial(brief, good)
    assert isinstance(connection, Connection)
    mesh.world.run(30.0 + GRANT_SKEW_S - mesh.world.now - 1)
    assert connection.state is State.READY, "the tolerance for clocks"
    mesh.world.run(3.0)
    assert isinstance(connection.error, PolicyDenied)
    assert "expired" in connection.error.message


def test_grants_that_are_renewed_on_a_live_connection_take_effect_at_once_and_keep_it() -> None:
    mesh = Mesh()
    identity = Identity(mesh.world.entropy(32))
    brief = mesh.node(chain=mesh.grant(identity, "web", expires=MS + 30_000), identity=identity)
    good = mesh.node("db")
    connection = mesh.dial(brief, good)
    assert isinstance(connection, Connection)
    brief.mesh.context.standings.set_own(mesh.grant(identity, "ops"))
    brief.on_dirty()
    mesh.world.run(1.0)
    assert good.mesh.context.standings.caller(brief.id).roles == {"ops"}
    mesh.world.run(30.0 + GRANT_SKEW_S)
    assert connection.state is State.READY


def test_bad_grants_on_a_live_connection_change_nothing_and_cost_little() -> None:
    mesh = Mesh()
    one, good = mesh.node("web"), mesh.node("db")
    connection = mesh.dial(one, good)
    assert isinstance(connection, Connection)
    forged = (bytes(64) + mesh.grant(one.mesh.context.identity, "admin")[0][64:],)
    for _ in range(20):
        one.mesh.context.standings.set_own(forged)
    one.on_dirty()
    mesh.world.run(1.0)
    assert connection.state is State.READY
    assert good.mesh.context.standings.caller(one.id).roles == {"web"}
    assert good.mesh.metrics.counters["drop_grants"] == 20


def test_where_the_nodes_list_names_roles_gossip_connects_members_that_have_them_and_serves_no_other() -> None:
    mesh = Mesh()
    seed = mesh.node("ops", gossip=True)
    nodes = [mesh.node(role, gossip=True) for role in ("web", "web", "db")]
    lists = parse_parties(["role:web", "role:ops"])
    for node in nodes[:2]:
        node.guard.lists.node = lists
    for node in nodes:
        node.join(seed)
        mesh.world.run(5.0)
    mesh.world.run(30.0)
    assert nodes[0].mesh.context.peers.connection(nodes[1].id) is not None
    stranger = nodes[2].mesh.context.peers.connection(nodes[0].id)
    assert stranger is None or not stranger.dialler


# ---- invitations


def _ticket(mesh: Mesh, uses: int) -> Ticket:
    return make_ticket(
        AUTHORITY,
        "field",
        bytes(32),
        AUTHORITY.identity.id,
        (),
        roles=("web",),
        services=None,
        now=MS,
        until=MS + HOUR,
        expires=MS + HOUR,
        uses=uses,
        entropy=mesh.world.entropy,
    )


def _newcomer(mesh: Mesh, ticket: Ticket, **more: Any) -> SimNode:
    identity = Identity(mesh.world.entropy(32))
    return mesh.node(
        chain=redeem(ticket, identity.id, mesh.world.wall(), mesh.world.entropy), identity=identity, **more
    )


def test_a_ticket_admits_as_many_nodes_as_it_is_for_and_the_same_ones_again() -> None:
    mesh = Mesh()
    good, ticket = mesh.node("db"), _ticket(mesh, 2)
    first, second, third = (_newcomer(mesh, ticket) for _ in range(3))
    assert isinstance(mesh.dial(first, good), Connection)
    assert isinstance(mesh.dial(second, good), Connection)
    refused = mesh.dial(third, good)
    assert isinstance(refused, PolicyDenied)
    assert "its invitation was used by other nodes already" in refused.message
    mesh.connection(first, good).close(CloseCode.NORMAL)
    mesh.world.run(1.0)
    assert isinstance(mesh.dial(first, good), Connection)
    assert good.mesh.context.standings.redemptions.excess == {
        good.mesh.context.standings.standing(first.id).grants[0]: third.id  # type: ignore[union-attr]
    }


def test_a_node_that_joined_by_a_ticket_counts_itself_among_its_users() -> None:
    mesh = Mesh()
    ticket = _ticket(mesh, 1)
    first, second = _newcomer(mesh, ticket), _newcomer(mesh, ticket)
    assert isinstance(mesh.dial(second, first), PolicyDenied)


def test_uses_of_a_ticket_that_other_nodes_saw_count_too() -> None:
    mesh = Mesh()
    ticket = _ticket(mesh, 1)
    one, other = mesh.node("db", gossip=True), mesh.node("db", gossip=True)
    other.join(one)
    first = _newcomer(mesh, ticket, gossip=True)
    first.join(one)
    mesh.world.run(20.0)
    assert first.mesh.context.peers.connection(one.id) is not None
    first.kill()
    late = _newcomer(mesh, ticket)
    outcome = mesh.dial(late, other)
    assert isinstance(outcome, PolicyDenied)
    assert "used by other nodes" in outcome.message


def test_two_parts_of_a_mesh_that_admitted_different_users_notice_it_when_they_meet() -> None:
    mesh = Mesh()
    ticket = _ticket(mesh, 1)
    one, other = mesh.node("db", gossip=True), mesh.node("db", gossip=True)
    for part, node in ((_newcomer(mesh, ticket, gossip=True), one), (_newcomer(mesh, ticket, gossip=True), other)):
        part.join(node)
    mesh.world.run(20.0)
    assert not one.mesh.metrics.counters.get("invitations_overused")
    other.join(one)
    mesh.world.run(60.0)
    assert one.mesh.metrics.counters["invitations_overused"]
    assert other.mesh.metrics.counters["invitations_overused"]


def test_the_count_survives_a_restart() -> None:
    mesh = Mesh()
    good, ticket = mesh.node("db"), _ticket(mesh, 1)
    mesh.dial(_newcomer(mesh, ticket), good)
    saved = json.loads(json.dumps(good.mesh.context.standings.redemptions.saved()))
    again = mesh.node("db")
    kept = {
        name: Uses(use["share"], use["ends"], tuple(NodeId.parse(key) for key in use["keys"]))
        for name, use in saved.items()
    }
    again.mesh.context.standings.redemptions.restore(kept)
    assert isinstance(mesh.dial(_newcomer(mesh, ticket), again), PolicyDenied)


# ---- renewal


def _renewer(mesh: Mesh, **changes: Any) -> SimNode:
    identity = Identity(mesh.world.entropy(32))
    right = Delegation(("web",), None, 1, MS + 24 * HOUR, renews=True)
    said = {"not_before": MS, "expires": MS + 24 * HOUR, "delegation": right} | changes
    return mesh.node(chain=AUTHORITY.issue(identity.id, entropy=mesh.world.entropy, **said), identity=identity)


def _brief(mesh: Mesh, *roles: str) -> SimNode:
    identity = Identity(mesh.world.entropy(32))
    return mesh.node(chain=mesh.grant(identity, *roles, expires=MS + 100_000), identity=identity)


def test_short_lived_grants_renew_themselves_at_a_peer_with_the_right_and_the_connection_stays() -> None:
    mesh = Mesh()
    brief, renewer, other = _brief(mesh, "web"), _renewer(mesh), mesh.node("db")
    connection = mesh.dial(brief, renewer)
    assert isinstance(connection, Connection)
    assert isinstance(mesh.dial(brief, other), Connection)
    kept: list[Chain] = []
    brief.mesh.context.standings.on_own = kept.append
    mesh.world.run(1_000.0)
    assert connection.state is State.READY
    assert brief.mesh.context.peers.connection(other.id) is not None, "it heard of the new grants in time"
    assert 10 < len(kept) < 25
    own = brief.mesh.context.standings.own()
    assert own is not None
    assert (own.roles, own.keys[1]) == ({"web"}, renewer.id)


def test_renewed_grants_fall_with_the_first_one_however_often_they_were_renewed() -> None:
    mesh = Mesh()
    brief, renewer, late = _brief(mesh, "web"), _renewer(mesh), mesh.node("db")
    first = open_grant(brief.mesh.context.grants[-1])
    assert isinstance(mesh.dial(brief, renewer), Connection)
    mesh.world.run(500.0)
    own = brief.mesh.context.standings.own()
    assert own is not None
    assert brief.mesh.metrics.counters["grants_renewed"] > 2
    connection = mesh.dial(brief, late)
    assert isinstance(connection, Connection)
    made = sign_revocation(AUTHORITY.identity, bytes.fromhex(first.id), time=MS)
    late.mesh.context.revoking.take(made.encoded)
    late.on_dirty()
    mesh.world.run(1.0)
    assert isinstance(connection.error, PolicyDenied)


def test_a_renewer_that_was_away_is_dialled_when_it_is_time() -> None:
    mesh = Mesh()
    brief, renewer = _brief(mesh, "web"), _renewer(mesh)
    connection = mesh.dial(brief, renewer)
    assert isinstance(connection, Connection)
    connection.close(CloseCode.NORMAL)
    mesh.world.run(70.0)
    assert brief.mesh.metrics.counters["grants_renewed"] == 1


def test_what_a_delegate_handed_on_is_renewed_by_no_other_node_and_ends() -> None:
    mesh = Mesh()
    renewer, agent, worker = _renewer(mesh), Identity(mesh.world.entropy(32)), Identity(mesh.world.entropy(32))
    said = {"roles": ("web",), "not_before": MS, "expires": MS + 100_000, "entropy": mesh.world.entropy}
    of_agent = AUTHORITY.issue(agent.id, delegation=Delegation(("web",), None, 2, MS + 100_000), **said)
    ticket = make_ticket(
        Issuer(agent, of_agent),
        "field",
        bytes(32),
        AUTHORITY.identity.id,
        (),
        roles=("web",),
        services=None,
        now=MS,
        until=MS + 100_000,
        expires=MS + 100_000,
        uses=1,
        entropy=mesh.world.entropy,
    )
    nodes = [mesh.node(chain=Issuer(agent, of_agent).issue(worker.id, **said), identity=worker)]
    nodes.append(_newcomer(mesh, ticket))
    for node in nodes:
        assert isinstance(mesh.dial(node, renewer), Connection)
    mesh.world.run(200.0)
    assert "grants_made" not in renewer.mesh.metrics.counters
    for node in nodes:
        assert node.mesh.context.peers.connection(renewer.id) is None, "it is over, and with it what it gave"


REFUSING: dict[str, dict[str, Any]] = {
    "without the right": {"delegation": Delegation(("web",), None, 1, MS + HOUR)},
    "of other roles": {"delegation": Delegation(("db",), None, 1, MS + HOUR, renews=True)},
    "that expires no later itself": {"expires": MS + 100_000},
}


@pytest.mark.parametrize("what", REFUSING)
def test_a_peer_renews_nothing_that_its_own_grants_do_not_allow(what: str) -> None:
    mesh = Mesh()
    brief, renewer = _brief(mesh, "web"), _renewer(mesh, **REFUSING[what])
    connection = mesh.dial(brief, renewer)
    assert isinstance(connection, Connection)
    mesh.world.run(60.0)
    brief.mesh.context.peers.connection(renewer.id).send_frame(Frame.RENEW)  # type: ignore[union-attr]
    brief.on_dirty()
    mesh.world.run(1.0)
    assert renewer.mesh.metrics.counters["grants_not_made"] >= 1
    assert "grants_made" not in renewer.mesh.metrics.counters
    assert "grants_renewed" not in brief.mesh.metrics.counters


def test_a_renewal_that_was_not_asked_for_or_gives_other_roles_changes_nothing() -> None:
    mesh = Mesh()
    brief, renewer = _brief(mesh, "web"), _renewer(mesh)
    mesh.dial(brief, renewer)
    before = brief.mesh.context.grants
    other = mesh.grant(brief.mesh.context.identity, "web", "admin")
    for asked in (None, renewer.id):
        brief.mesh.context.hooks.control[Frame.RENEWED].__self__._asked = asked  # type: ignore[attr-defined]
        mesh.connection(renewer, brief).send_frame(Frame.RENEWED, list(other))
        renewer.on_dirty()
        mesh.world.run(1.0)
    assert brief.mesh.context.grants == before
    assert brief.mesh.metrics.counters["drop_renewed"] == 2
