"""What the holder of a ticket, or of one that is used up or over, can make of it beside a grant for its own node."""

from __future__ import annotations

import pytest

from meshnode.errors import GrantReject, PolicyDenied
from meshnode.gossip.entry import Kind
from meshnode.identity.keys import Identity
from meshnode.quic.connection import Connection, State
from meshnode.sim.world import SimNode
from meshnode.trust.authority import Issuer, pack_chain
from meshnode.trust.chain import verify_chain
from meshnode.trust.grant import open_grant
from meshnode.trust.renewal import lineage_of
from meshnode.trust.revocation import RevocationError, RevocationReject, open_revocation, sign_revocation
from meshnode.trust.ticket import Ticket, redeem
from tests.sim.test_grants import AUTHORITY, HOUR, MS, Mesh, _newcomer, _renewer, _ticket


def _used_up(mesh: Mesh, good: SimNode) -> Ticket:
    ticket = _ticket(mesh, 1)
    assert isinstance(mesh.dial(_newcomer(mesh, ticket), good), Connection)
    return ticket


def test_the_key_of_a_ticket_is_no_node() -> None:
    for uses in (0, 1):  # it would be counted by none, bound to no service, and stay, renewed, when the ticket is over
        mesh = Mesh()
        good, ticket = mesh.node("db"), _ticket(mesh, uses)
        thief = mesh.node(identity=Identity(ticket.invite), chain=ticket.chain)
        for one, other in ((thief, good), (good, thief)):
            refused = mesh.dial(one, other)
            assert isinstance(refused, PolicyDenied)
            assert "is that of a ticket" in refused.message


def test_a_ticket_that_is_used_up_gives_a_member_no_role_on_a_live_connection() -> None:
    mesh = Mesh()
    good = mesh.node("db")
    ticket, member = _used_up(mesh, good), mesh.node("guest")
    connection = mesh.dial(member, good)
    assert isinstance(connection, Connection)
    member.mesh.context.standings.set_own(redeem(ticket, member.id, mesh.world.wall(), mesh.world.entropy))
    member.on_dirty()
    mesh.world.run(5.0)
    assert good.mesh.context.standings.caller(member.id).roles == {"guest"}
    assert good.mesh.metrics.counters["drop_grants"] == 1
    assert connection.state is State.READY


def test_a_ticket_that_is_used_up_gives_a_member_no_role_by_gossip() -> None:
    mesh = Mesh()
    good, far = mesh.node("db", gossip=True), mesh.node("db", gossip=True)
    ticket = _used_up(mesh, good)
    member = mesh.node("guest", gossip=True)
    for node in (far, member):
        node.join(good)
    mesh.world.run(20.0)
    assert far.mesh.context.heard.get(member.id).roles == {"guest"}  # type: ignore[union-attr]
    gossip = member.mesh.gossip
    assert gossip is not None
    chain = redeem(ticket, member.id, mesh.world.wall(), mesh.world.entropy)
    gossip.entries.publish_soon(Kind.GRANTS, "", pack_chain(chain), 3600, mesh.world.now)
    member.on_dirty()
    mesh.world.run(20.0)
    for node in (good, far):
        heard = node.mesh.context.heard.get(member.id)
        assert heard is None or heard.roles == {"guest"}
        assert "web" not in node.mesh.context.standings.caller(member.id).roles


def test_the_holder_of_a_ticket_revokes_neither_the_ticket_nor_the_others_that_joined_by_it() -> None:
    mesh = Mesh()
    ticket = _ticket(mesh, 20)
    invite, honest = Identity(ticket.invite), Identity(b"h" * 32)
    assert redeem(ticket, honest.id, mesh.world.wall(), mesh.world.entropy)
    for target in (invite.id, honest.id):
        made = sign_revocation(invite, bytes(target), time=MS, chain=ticket.chain)
        try:
            open_revocation(made.encoded, AUTHORITY.identity.id, mesh.world.wall())
        except RevocationError as error:
            assert error.reason is RevocationReject.UNPROVEN
            assert error.__cause__.reason is GrantReject.INVITATION  # type: ignore[union-attr]
        else:
            raise AssertionError("a ticket has the right to revoke")


def _revoked(mesh: Mesh, ticket: Ticket, *nodes: SimNode) -> None:
    target = open_grant(ticket.chain[-1])
    made = sign_revocation(AUTHORITY.identity, bytes.fromhex(target.id), time=round(mesh.world.wall() * 1000))
    for node in nodes:
        node.mesh.context.revoking.take(made.encoded)
        node.on_dirty()
    mesh.world.run(0.5)


def test_a_revoked_ticket_takes_a_node_with_it_that_was_renewed_since_and_none_that_was_granted_anew() -> None:
    mesh = Mesh()
    renewer, good, ticket = _renewer(mesh), mesh.node("db"), _ticket(mesh, 2)
    joined, granted = _newcomer(mesh, ticket), _newcomer(mesh, ticket)
    others = [mesh.dial(node, good) for node in (joined, granted)]
    assert isinstance(mesh.dial(joined, renewer), Connection)
    for _ in range(9):  # the model's idle limit is ten minutes
        for node, connection in zip((joined, granted), others, strict=True):
            assert isinstance(connection, Connection)
            connection.engine.ping()
            node.mesh.connections.touch(connection)
            node.on_dirty()
        mesh.world.run(0.7 * HOUR / 1000 / 9)
    own = joined.mesh.context.standings.own()
    assert own is not None
    assert own.invite is None, "its grants are the renewer's, and show the ticket no more"
    again = AUTHORITY.issue(
        granted.id,
        roles=("web",),
        not_before=round(mesh.world.wall() * 1000),
        expires=MS + 3 * HOUR,
        entropy=mesh.world.entropy,
    )
    granted.mesh.context.standings.set_own(again)
    granted.on_dirty()
    mesh.world.run(1.0)
    _revoked(mesh, ticket, good, renewer)
    assert isinstance(others[0], Connection)
    assert isinstance(others[0].error, PolicyDenied)
    assert isinstance(others[1], Connection)
    assert others[1].state is State.READY
    assert isinstance(mesh.dial(joined, good), PolicyDenied), "nor does it come in again"
    assert good.mesh.context.standings.standing(joined.id) is None
    assert isinstance(mesh.dial(granted, renewer), Connection)
    mesh.world.run(3 * HOUR / 1000)
    own = granted.mesh.context.standings.own()
    assert own is not None
    assert own.keys[1] == renewer.id, "its other grant was renewed"
    assert isinstance(mesh.dial(granted, renewer), Connection), "and counts"


@pytest.mark.parametrize("uses", [0, 1])
def test_renewed_grants_fall_with_the_ticket_at_a_node_that_never_saw_it(uses: int) -> None:
    mesh = Mesh()
    renewer, ticket = _renewer(mesh), _ticket(mesh, uses)
    joined = _newcomer(mesh, ticket)
    assert isinstance(mesh.dial(joined, renewer), Connection)
    mesh.world.run(0.7 * HOUR / 1000)
    own = joined.mesh.context.standings.own()
    assert own is not None
    assert own.keys[1] == renewer.id
    late = mesh.node("db")
    connection = mesh.dial(joined, late)
    assert isinstance(connection, Connection)
    _revoked(mesh, ticket, late)
    assert isinstance(connection.error, PolicyDenied)
    assert isinstance(mesh.dial(joined, late), PolicyDenied)


def test_the_holder_of_a_ticket_hides_it_behind_no_lineage_of_its_own() -> None:
    mesh = Mesh()
    ticket, node = _ticket(mesh, 1), Identity(b"n" * 32)
    said = {"roles": ("web",), "not_before": MS, "expires": MS + HOUR, "entropy": mesh.world.entropy}
    chain = Issuer(Identity(ticket.invite), ticket.chain).issue(node.id, lineage=(bytes(8), bytes(32)), **said)  # type: ignore[arg-type]
    standing = verify_chain(chain, node.id, AUTHORITY.identity.id, mesh.world.wall())
    assert lineage_of(standing) == (bytes.fromhex(open_grant(ticket.chain[-1]).id),)
