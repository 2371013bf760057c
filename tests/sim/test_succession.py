"""Keys that are replaced: grants and rules follow to the new one, and neither a thief nor a revoked key gains by it."""

from __future__ import annotations

from typing import Any

import pytest

from meshnode.base.limits import GRANT_SKEW_S, MAX_GRACE_S, MAX_LINEAGE
from meshnode.errors import GrantError, GrantReject, MeshError, PolicyDenied
from meshnode.identity.keys import Identity
from meshnode.quic.connection import Connection
from meshnode.sim.world import EPOCH, SimNode
from meshnode.stack.role_link import LOOK_S
from meshnode.trust.authority import Issuer
from meshnode.trust.chain import Chain, verify_chain
from meshnode.trust.grant import LAST_MS, Delegation, Grant, grant_id, open_grant
from meshnode.trust.parties import parse_parties
from meshnode.trust.renewal import Renewer, lineage_of
from meshnode.trust.revocation import sign_revocation
from meshnode.trust.revocations import Revocations
from meshnode.trust.succession import open_succession, sign_succession
from meshnode.trust.successors import share_of
from tests.sim.test_grants import AUTHORITY, HOUR, MS, Mesh, _newcomer, _ticket

OLD, NEW, OTHER = (Identity(bytes([n]) * 32) for n in (11, 12, 13))
DAY = 24 * HOUR


def _chain(subject: Identity = OLD, *old: Identity) -> Chain:
    said: dict[str, Any] = {"roles": ["web"], "not_before": MS, "expires": MS + 90 * DAY, "entropy": bytes}
    return AUTHORITY.issue(subject.id, lineage=tuple(bytes(each.id) for each in old), **said)


def _succession(old: Identity = OLD, new: Identity = NEW, time: int = MS) -> bytes:
    return sign_succession(old, new, time=time, ends=time + DAY)


def _link(old: Identity = OLD, new: Identity = NEW) -> Grant:
    return open_succession(_succession(old, new))


def _verify(chain: Chain, subject: Identity = NEW, wall: float = EPOCH, **more: Any) -> Any:
    return verify_chain(chain, subject.id, AUTHORITY.identity.id, wall, **more)


def test_grants_of_the_old_key_count_for_the_new_one_and_for_the_old_one_in_the_grace_period() -> None:
    chain = (*_chain(), _succession())
    found = _verify(chain)
    assert (found.id, found.roles, found.former) == (NEW.id, {"web"}, OLD.id)
    assert found.delegation is None
    assert _verify(chain, OLD).former is None
    late = EPOCH + DAY / 1000 + GRANT_SKEW_S + 1
    assert _verify(chain, NEW, late).id == NEW.id
    with pytest.raises(GrantError) as caught:
        _verify(chain, OLD, late)
    assert caught.value.reason is GrantReject.EXPIRED


def test_the_succession_stays_behind_grants_that_were_renewed_for_the_new_key() -> None:
    found = _verify((*_chain(NEW, OLD), _succession()))
    assert (found.id, found.former) == (NEW.id, OLD.id)


BAD: dict[str, tuple[Chain, GrantReject]] = {
    "of a key without grants": ((_succession(),), GrantReject.MISSING),
    "of another key": ((*_chain(OTHER), _succession()), GrantReject.OTHER_KEY),
    "for another key": ((*_chain(), _succession(OLD, OTHER)), GrantReject.OTHER_KEY),
    "cut": ((*_chain(), _succession()[:-1]), GrantReject.MALFORMED),
    "with a changed signature of the old key": (
        (*_chain(), bytes([_succession()[0] ^ 1]) + _succession()[1:]),
        GrantReject.FORGED,
    ),
    "from the future": ((*_chain(), _succession(time=MS + HOUR)), GrantReject.NOT_YET),
    "behind another one": ((*_chain(), _succession(OLD, OTHER), _succession(OTHER, NEW)), GrantReject.BROKEN),
}


@pytest.mark.parametrize("what", BAD)
def test_a_succession_that_does_not_hold_is_refused_by_name(what: str) -> None:
    chain, why = BAD[what]
    with pytest.raises(GrantError) as caught:
        _verify(chain)
    assert caught.value.reason is why


def test_the_old_key_alone_cannot_name_a_successor_that_has_not_signed() -> None:
    thief = Identity(b"t" * 32)
    forged = sign_succession(OLD, thief, time=MS, ends=MS + DAY)
    renamed = OLD.sign(b"meshnode succession v1\x00" + forged[64:].replace(bytes(thief.id), bytes(NEW.id)))
    with pytest.raises(GrantError) as caught:
        _verify((*_chain(), renamed + forged[64:].replace(bytes(thief.id), bytes(NEW.id))))
    assert caught.value.reason is GrantReject.FORGED


@pytest.mark.parametrize("revoked", [OLD, NEW])
def test_a_succession_ends_when_either_key_is_revoked(revoked: Identity) -> None:
    held = Revocations(AUTHORITY.identity.id)
    held.add(sign_revocation(AUTHORITY.identity, bytes(revoked.id), time=MS), EPOCH)
    for chain in ((*_chain(), _succession()), (*_chain(NEW, OLD), _succession())):
        with pytest.raises(GrantError) as caught:
            _verify(chain, is_revoked=held.covers)
        assert caught.value.reason is GrantReject.REVOKED


def _rotated(mesh: Mesh, new: Identity) -> SimNode:
    return mesh.node(chain=(*_chain(), _succession(OLD, new)), identity=new)


def test_when_the_grace_is_over_the_old_key_is_cut_and_admitted_no_more_where_the_new_one_is_known() -> None:
    mesh = Mesh()
    server, old = mesh.node("db"), mesh.node(chain=_chain(), identity=OLD)
    new = mesh.node(chain=(*_chain(), sign_succession(OLD, NEW, time=MS, ends=MS + 60_000)), identity=NEW)
    assert isinstance(mesh.dial(new, server), Connection)
    connection = mesh.dial(old, server)
    assert isinstance(connection, Connection), "it counts too, though it shows no succession"
    mesh.world.run(50.0 + GRANT_SKEW_S)
    assert connection.error is None
    mesh.world.run(20.0)
    assert isinstance(connection.error, PolicyDenied)
    refused = mesh.dial(old, server)
    assert isinstance(refused, PolicyDenied)
    assert "expired" in refused.message
    assert isinstance(mesh.dial(new, server), Connection)


def test_an_old_key_that_is_connected_already_is_cut_when_its_grace_is_over() -> None:
    mesh = Mesh()
    server, old = mesh.node("db"), mesh.node(chain=_chain(), identity=OLD)
    connection = mesh.dial(old, server)
    new = mesh.node(chain=(*_chain(), sign_succession(OLD, NEW, time=MS, ends=MS + 60_000)), identity=NEW)
    assert isinstance(mesh.dial(new, server), Connection)
    mesh.world.run(60.0 + GRANT_SKEW_S)
    assert isinstance(connection, Connection)
    assert isinstance(connection.error, PolicyDenied)


def test_roles_that_an_old_key_has_told_by_gossip_end_with_its_grace() -> None:
    mesh = Mesh()
    server, old = mesh.node("db", gossip=True), mesh.node(chain=_chain(), identity=OLD, gossip=True)
    old.join(server)
    mesh.world.run(20.0)
    old.kill()
    heard = server.mesh.context.heard
    assert heard.get(OLD.id) is not None
    ends = round(mesh.world.wall() * 1000) + 60_000
    new = mesh.node(chain=(*_chain(), sign_succession(OLD, NEW, time=MS, ends=ends)), identity=NEW)
    assert isinstance(mesh.dial(new, server), Connection)
    assert heard.get(OLD.id) is not None
    mesh.world.run(60.0 + GRANT_SKEW_S + LOOK_S)
    assert heard.get(OLD.id) is None


def test_allow_rules_about_the_old_id_mean_the_new_one_and_dials_of_it_lead_there() -> None:
    mesh = Mesh()
    server, node = mesh.node("db"), _rotated(mesh, NEW)
    server.guard.lists.node = parse_parties([OLD.id])
    assert isinstance(mesh.dial(node, server), Connection)
    found: list[Connection | MeshError] = []
    server.mesh.connect(OLD.id, mesh.world.now, found.append)
    assert isinstance(found[0], Connection)
    assert found[0].peer == NEW.id


def test_a_key_that_has_no_grants_lends_its_place_in_a_list_to_no_member() -> None:
    mesh = Mesh()
    server = mesh.node("db")
    server.guard.lists.node = parse_parties([OLD.id])
    ticket = _ticket(mesh, 1)
    made = Issuer(Identity(ticket.invite), ticket.chain)
    said: dict[str, Any] = {"roles": ["web"], "not_before": MS, "expires": MS + HOUR, "entropy": bytes}
    forged = made.issue(OTHER.id, lineage=(bytes(OLD.id),), **said)
    for member, grants in ((NEW, _chain(NEW)), (OTHER, forged)):
        node = mesh.node(chain=(*grants, _succession(OLD, member)), identity=member)
        assert isinstance(mesh.dial(node, server), PolicyDenied)
        assert server.mesh.context.successors.said == []
    owner = mesh.node(chain=(*_chain(NEW, OLD), _succession()), identity=Identity(bytes(NEW.seed)))
    assert isinstance(mesh.dial(owner, server), Connection)


def test_a_key_with_two_successors_has_none_and_both_are_cut() -> None:
    mesh = Mesh()
    server, one, other = mesh.node("db"), _rotated(mesh, NEW), _rotated(mesh, OTHER)
    first = mesh.dial(one, server)
    assert isinstance(first, Connection)
    assert isinstance(mesh.dial(other, server), PolicyDenied)
    assert isinstance(first.error, PolicyDenied)
    assert server.mesh.context.successors.of(OLD.id) == OLD.id


def test_a_ticket_for_one_node_is_not_used_up_by_its_new_key() -> None:
    mesh = Mesh()
    server, ticket = mesh.node("db"), _ticket(mesh, 1)
    first = _newcomer(mesh, ticket)
    assert isinstance(mesh.dial(first, server), Connection)
    old = first.mesh.context.identity
    again = mesh.node(chain=(*first.mesh.context.grants, _succession(old, NEW)), identity=NEW)
    assert isinstance(mesh.dial(again, server), Connection)


def test_names_services_and_seeds_that_meant_the_old_id_mean_the_new_one() -> None:
    mesh = Mesh()
    server, node = mesh.node("db", gossip=True), _rotated(mesh, NEW)
    registry, context = server.mesh.registry, server.mesh.context
    assert registry is not None
    saved: list[None] = []
    registry.on_pins = lambda: saved.append(None)
    registry.names.restore({"laptop": OLD.id, "printer": OTHER.id})
    registry.providers.restore({"web": OLD.id, "ssh": OTHER.id})
    server.mesh.add_seed(OLD.id, [node.addr], mesh.world.now)
    assert isinstance(mesh.dial(node, server), Connection)
    assert registry.names.pins == {"laptop": NEW.id, "printer": OTHER.id}
    assert registry.providers.pins == {"web": NEW.id, "ssh": OTHER.id}
    assert saved
    assert context.records.hints == {NEW.id: (node.addr,)}
    server.mesh.add_seed(OLD.id, [node.addr], mesh.world.now)
    assert list(context.records.hints) == [NEW.id], "so do those that are configured later"


def test_a_key_takes_the_place_of_what_let_it_in() -> None:
    mesh = Mesh()
    ticket = _ticket(mesh, 2)
    joined = _newcomer(mesh, ticket).mesh.context
    of_ticket = grant_id(ticket.chain[-1])
    own = (*_chain(), _succession())
    assert share_of(_verify(own)) == ("", "")
    assert share_of(_verify(joined.grants, joined.identity)) == (of_ticket, "")
    other = _chain(OTHER)
    of_authority = (NEW, own, grant_id(own[0])), (OTHER, other, grant_id(other[0]))
    for key, before, first in (*of_authority, (joined.identity, joined.grants, of_ticket)):
        chain = _renewed(mesh, key, before)
        assert share_of(_verify(chain, key)) == (grant_id(chain[0]), first)
        assert share_of(_verify(_renewed(mesh, key, chain), key))[1] == first, "however often"


def test_a_second_old_key_of_one_new_key_is_refused() -> None:
    mesh = Mesh()
    server = mesh.node("db")
    node = mesh.node(chain=(*_chain(NEW, OLD), _succession(OLD, NEW)), identity=NEW)
    assert isinstance(mesh.dial(node, server), Connection)
    node.mesh.context.standings.set_own((*_chain(NEW, OTHER), _succession(OTHER, NEW)))
    node.on_dirty()
    mesh.world.run(1.0)
    assert server.mesh.metrics.counters["drop_grants"] == 1
    assert server.mesh.context.successors.said == [_succession(OLD, NEW)]


def test_a_ticket_that_is_used_up_notes_no_succession() -> None:
    mesh = Mesh()
    server, ticket = mesh.node("db"), _ticket(mesh, 1)
    assert isinstance(mesh.dial(_newcomer(mesh, ticket), server), Connection)
    late = _newcomer(mesh, ticket).mesh.context
    again = mesh.node(chain=(*late.grants, _succession(late.identity, NEW)), identity=NEW)
    assert isinstance(mesh.dial(again, server), PolicyDenied)
    assert server.mesh.context.successors.said == []


def _renewed(mesh: Mesh, subject: Identity, before: Chain) -> Chain:
    """Return grants as a renewer makes them of those before."""
    renewer = Identity(b"R" * 32)
    may = Delegation(("web",), None, 1, MS + 90 * DAY, renews=True)
    first = AUTHORITY.issue(
        renewer.id, roles=["web"], not_before=MS, expires=MS + 90 * DAY, delegation=may, entropy=mesh.world.entropy
    )
    said: dict[str, Any] = {"roles": ["web"], "not_before": MS, "expires": MS + 90 * DAY, "entropy": bytes}
    return Issuer(renewer, first).issue(subject.id, lineage=lineage_of(_verify(before, subject)), **said)


def _hides_its_old_key(mesh: Mesh, node: SimNode, before: Chain | None = None) -> None:
    """Let a node go on with renewed grants alone, without the succession behind them."""
    context = node.mesh.context
    context.standings.set_own(_renewed(mesh, context.identity, before or context.grants))
    node.on_dirty()
    mesh.world.run(1.0)


def test_a_new_key_falls_with_the_old_one_though_its_renewed_grants_hide_it() -> None:
    mesh = Mesh()
    server, node = mesh.node("db"), _rotated(mesh, NEW)
    connection = mesh.dial(node, server)
    assert isinstance(connection, Connection)
    _hides_its_old_key(mesh, node)
    standing = server.mesh.context.standings.standing(NEW.id)
    assert standing is not None
    assert standing.former is None, "what it shows has the old key no more"
    made = sign_revocation(AUTHORITY.identity, bytes(OLD.id), time=round(mesh.world.wall() * 1000))
    server.mesh.context.revoking.take(made.encoded)
    server.on_dirty()
    mesh.world.run(1.0)
    assert isinstance(connection.error, PolicyDenied)
    assert isinstance(mesh.dial(node, server), PolicyDenied), "nor does it come in again"


def test_a_new_key_that_was_given_grants_of_its_own_stays_when_the_old_one_is_revoked() -> None:
    mesh = Mesh()
    server, node = mesh.node("db"), _rotated(mesh, NEW)
    connection = mesh.dial(node, server)
    assert isinstance(connection, Connection)
    node.mesh.context.standings.set_own(_chain(NEW))
    node.on_dirty()
    mesh.world.run(1.0)
    made = sign_revocation(AUTHORITY.identity, bytes(OLD.id), time=round(mesh.world.wall() * 1000))
    server.mesh.context.revoking.take(made.encoded)
    _hides_its_old_key(mesh, node)
    assert connection.error is None, "and when they are renewed"
    assert isinstance(mesh.dial(node, mesh.node("db")), Connection)


def test_a_grant_of_its_own_keeps_a_thiefs_key_no_roles_that_it_had_of_the_stolen_one() -> None:
    mesh = Mesh()
    server, node = mesh.node("db"), _rotated(mesh, NEW)
    connection, before = mesh.dial(node, server), node.mesh.context.grants
    node.mesh.context.standings.set_own(mesh.grant(NEW, "guest", expires=MS + 90 * DAY))
    node.on_dirty()
    mesh.world.run(1.0)
    assert server.mesh.context.standings.caller(NEW.id).roles == {"guest"}
    _hides_its_old_key(mesh, node, before)
    assert server.mesh.context.standings.caller(NEW.id).roles == {"web"}
    made = sign_revocation(AUTHORITY.identity, bytes(OLD.id), time=round(mesh.world.wall() * 1000))
    server.mesh.context.revoking.take(made.encoded)
    server.on_dirty()
    mesh.world.run(1.0)
    assert isinstance(connection, Connection)
    assert isinstance(connection.error, PolicyDenied)


def test_a_second_successor_cuts_the_first_one_though_its_renewed_grants_hide_the_old_key() -> None:
    mesh = Mesh()
    server, thief, owner = mesh.node("db"), _rotated(mesh, OTHER), _rotated(mesh, NEW)
    connection = mesh.dial(thief, server)
    assert isinstance(connection, Connection)
    _hides_its_old_key(mesh, thief)
    assert isinstance(mesh.dial(owner, server), PolicyDenied)
    assert isinstance(connection.error, PolicyDenied)
    assert isinstance(mesh.dial(thief, server), PolicyDenied)


def _revoke_at(mesh: Mesh, node: SimNode, target: bytes) -> None:
    made = sign_revocation(AUTHORITY.identity, target, time=round(mesh.world.wall() * 1000))
    node.mesh.context.revoking.take(made.encoded)
    node.on_dirty()
    mesh.world.run(1.0)


def test_the_old_key_falls_with_a_revoked_new_one_in_its_grace_too() -> None:
    mesh = Mesh()
    server, old, new = mesh.node("db"), mesh.node(chain=_chain(), identity=OLD), _rotated(mesh, NEW)
    assert isinstance(mesh.dial(new, server), Connection)
    connection = mesh.dial(old, server)
    assert isinstance(connection, Connection)
    _revoke_at(mesh, server, bytes(NEW.id))
    assert isinstance(connection.error, PolicyDenied), "it was stolen with the machine"
    assert isinstance(mesh.dial(old, server), PolicyDenied)


def test_a_node_that_never_saw_the_succession_knows_the_old_key_by_the_renewed_grants() -> None:
    mesh = Mesh()
    late, node, again = mesh.node("db"), _rotated(mesh, NEW), Identity(b"2" * 32)
    _hides_its_old_key(mesh, node)
    connection = mesh.dial(node, late)
    assert isinstance(connection, Connection)
    assert late.mesh.context.successors.said == []
    link = sign_succession(NEW, again, time=MS, ends=MS + DAY)
    second = mesh.node(chain=_renewed(mesh, again, (*node.mesh.context.grants, link)), identity=again)
    twice = mesh.dial(second, late)
    assert isinstance(twice, Connection)
    _revoke_at(mesh, late, bytes(OLD.id))
    for each, gone in ((node, connection), (second, twice)):
        assert isinstance(gone.error, PolicyDenied), "by however many renewals and keys"
        assert isinstance(mesh.dial(each, late), PolicyDenied)


def test_where_the_owner_shows_its_successor_one_that_hides_the_old_key_is_cut() -> None:
    mesh = Mesh()
    server, thief, owner = mesh.node("db"), _rotated(mesh, OTHER), _rotated(mesh, NEW)
    _hides_its_old_key(mesh, thief)
    connection = mesh.dial(thief, server)
    assert isinstance(connection, Connection)
    assert isinstance(mesh.dial(owner, server), Connection), "nothing that the server has seen is against it"
    mesh.world.run(1.0)
    assert isinstance(connection.error, PolicyDenied)
    assert isinstance(mesh.dial(thief, server), PolicyDenied)


def test_a_key_that_was_replaced_twice_is_admitted_where_only_one_step_was_seen() -> None:
    mesh = Mesh()
    server, first, last = mesh.node("db"), _rotated(mesh, NEW), Identity(b"2" * 32)
    assert isinstance(mesh.dial(first, server), Connection)
    chain = (*_renewed(mesh, NEW, first.mesh.context.grants), sign_succession(NEW, last, time=MS, ends=MS + DAY))
    assert isinstance(mesh.dial(mesh.node(chain=_renewed(mesh, last, chain), identity=last), server), Connection)


def test_an_old_key_that_shows_its_succession_does_not_rest_on_itself() -> None:
    chain = (*_chain(), _succession())
    first = bytes.fromhex(grant_id(chain[0]))
    assert lineage_of(_verify(chain, OLD)) == (first,)
    assert lineage_of(_verify(chain, NEW)) == (first, bytes(OLD.id))


def test_a_key_that_was_replaced_too_often_is_renewed_no_more() -> None:
    mesh = Mesh()
    may = Delegation(("web",), None, 1, MS + 99 * DAY, renews=True)
    said: dict[str, Any] = {"roles": ["web"], "not_before": MS, "expires": MS + 99 * DAY, "entropy": bytes}
    own = AUTHORITY.issue(OTHER.id, delegation=may, **said)
    renewer = Renewer(OTHER, _verify(own, OTHER))
    for count in (MAX_LINEAGE - 1, MAX_LINEAGE):
        lineage = tuple(bytes([n]) * 32 for n in range(count))
        said |= {"expires": MS + 9 * DAY}
        chain = (*Issuer(OTHER, own).issue(OLD.id, lineage=lineage, **said), _succession())
        wall = mesh.world.wall() + 5 * DAY / 1000
        if count < MAX_LINEAGE:
            assert open_grant(renewer.renew(_verify(chain), wall, bytes)[-1]).lineage == (*lineage, bytes(OLD.id))
        else:
            with pytest.raises(GrantError) as caught:
                renewer.renew(_verify(chain), wall, bytes)
            assert caught.value.reason is GrantReject.TOO_LONG


def test_whatever_a_succession_says_the_old_key_counts_for_so_long_and_no_longer() -> None:
    chain = (*_chain(), sign_succession(OLD, NEW, time=MS, ends=LAST_MS))
    found = _verify(chain, NEW)
    assert found.former == OLD.id, "what it says is what both have signed"
    assert open_succession(chain[-1]).expires == MS + round(MAX_GRACE_S * 1000)
    late = EPOCH + MAX_GRACE_S + GRANT_SKEW_S + 1
    longer = AUTHORITY.issue(OLD.id, roles=["web"], not_before=MS, expires=LAST_MS, entropy=bytes)
    with pytest.raises(GrantError) as caught:
        _verify((*longer, chain[-1]), OLD, late)
    assert caught.value.reason is GrantReject.EXPIRED


def test_a_revoked_ticket_takes_the_new_key_of_what_joined_by_it_with_it() -> None:
    mesh = Mesh()
    server, ticket = mesh.node("db"), _ticket(mesh, 1)
    first = _newcomer(mesh, ticket).mesh.context
    node = mesh.node(chain=(*first.grants, _succession(first.identity, NEW)), identity=NEW)
    connection = mesh.dial(node, server)
    assert isinstance(connection, Connection)
    _hides_its_old_key(mesh, node)
    assert connection.error is None
    target = bytes.fromhex(grant_id(ticket.chain[-1]))
    made = sign_revocation(AUTHORITY.identity, target, time=round(mesh.world.wall() * 1000))
    server.mesh.context.revoking.take(made.encoded)
    server.on_dirty()
    mesh.world.run(1.0)
    assert isinstance(connection.error, PolicyDenied)


def test_the_issuer_of_a_rotated_key_makes_no_grants_with_the_old_ones() -> None:
    assert Issuer(NEW, (*_chain(), _succession())).chain == _chain()
