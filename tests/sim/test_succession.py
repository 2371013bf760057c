"""Keys that are replaced: grants and rules follow to the new one, and neither a thief nor a revoked key gains by it."""

from __future__ import annotations

from typing import Any

import pytest

from meshnode.base.limits import GRANT_SKEW_S, MAX_SUCCESSORS
from meshnode.errors import GrantError, GrantReject, MeshError, PolicyDenied
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection
from meshnode.sim.world import EPOCH, SimNode
from meshnode.trust.authority import Issuer
from meshnode.trust.chain import Chain, verify_chain
from meshnode.trust.grant import Delegation, Grant, grant_id
from meshnode.trust.parties import parse_parties
from meshnode.trust.redemptions import Regrants
from meshnode.trust.revocation import sign_revocation
from meshnode.trust.revocations import Revocations
from meshnode.trust.succession import open_succession, sign_succession
from meshnode.trust.successors import Successors
from tests.sim.test_grants import AUTHORITY, HOUR, MS, Mesh, _newcomer, _ticket

OLD, NEW, OTHER = (Identity(bytes([n]) * 32) for n in (11, 12, 13))
DAY = 24 * HOUR


def _chain(subject: Identity = OLD) -> Chain:
    return AUTHORITY.issue(subject.id, roles=["web"], not_before=MS, expires=MS + 90 * DAY, entropy=bytes)


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
    found = _verify((*_chain(NEW), _succession()))
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
    for chain in ((*_chain(), _succession()), (*_chain(NEW), _succession())):
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


def test_allow_rules_about_the_old_id_mean_the_new_one_and_dials_of_it_lead_there() -> None:
    mesh = Mesh()
    server, node = mesh.node("db"), _rotated(mesh, NEW)
    server.guard.lists.node = parse_parties([OLD.id])
    assert isinstance(mesh.dial(node, server), Connection)
    found: list[Connection | MeshError] = []
    server.mesh.connect(OLD.id, mesh.world.now, found.append)
    assert isinstance(found[0], Connection)
    assert found[0].peer == NEW.id


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


def test_successions_are_known_after_a_restart_and_forged_ones_are_not() -> None:
    one, saves = Successors(), []
    one.on_said = lambda: saves.append(list(one.said))
    one.note(_link())
    one.note(_link())
    assert saves == [[_succession()]], "it is written once"
    thief = Identity(b"t" * 32)
    forged = sign_succession(thief, OTHER, time=MS, ends=MS + DAY).replace(bytes(thief.id), bytes(OTHER.id))
    after = Successors()
    followed: list[tuple[object, object]] = []
    after.on_new.append(lambda old, new: followed.append((old, new)))
    after.restore([b"", forged, *one.said])
    assert (after.of(OLD.id), after.of(OTHER.id)) == (NEW.id, OTHER.id)
    assert followed == [(OLD.id, NEW.id)]
    one.note(_link(OLD, OTHER))
    again = Successors()
    again.restore(one.said)
    assert again.is_disputed(OLD.id), "nor is a dispute forgotten"


def test_the_successions_that_are_kept_are_bounded() -> None:
    found = Successors()
    for n in range(MAX_SUCCESSORS + 5):
        old, new = (NodeId(number.to_bytes(32, "big")) for number in (2 * n, 2 * n + 1))
        found.note(Grant(old, new, (), None, MS, MS, None, n.to_bytes(2, "big")))
    assert len(found.said) == MAX_SUCCESSORS
    assert found.of(NodeId(bytes(32))) == NodeId(bytes(32)), "nor is more kept of those that had to go"
    assert found.formers(NodeId((1).to_bytes(32, "big"))) == []


def test_a_key_that_signs_for_ever_new_old_keys_has_one_place_and_pushes_out_no_dispute() -> None:
    found = Successors()
    found.note(_link())
    assert found.note(_link(OLD, OTHER))
    liar = Identity(b"l" * 32)
    for n in range(MAX_SUCCESSORS):
        old = NodeId(n.to_bytes(32, "big"))
        found.note(Grant(old, liar.id, (), None, MS, MS, None, b""))
    assert len(found.said) == 3
    assert found.is_disputed(OLD.id)


def test_a_second_old_key_of_one_new_key_is_refused() -> None:
    mesh = Mesh()
    server = mesh.node("db")
    node = mesh.node(chain=(*_chain(NEW), _succession(OLD, NEW)), identity=NEW)
    assert isinstance(mesh.dial(node, server), Connection)
    node.mesh.context.standings.set_own((*_chain(NEW), _succession(OTHER, NEW)))
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


def _renewed(mesh: Mesh, *subjects: Identity) -> list[Chain]:
    """Return grants that a renewer has made."""
    renewer = Identity(b"R" * 32)
    may = Delegation(("web",), None, 1, MS + 90 * DAY, renews=True)
    first = AUTHORITY.issue(
        renewer.id, roles=["web"], not_before=MS, expires=MS + 90 * DAY, delegation=may, entropy=mesh.world.entropy
    )
    made = Issuer(renewer, first)
    more: dict[str, Any] = {"roles": ["web"], "not_before": MS, "expires": MS + 90 * DAY, "entropy": bytes}
    return [made.issue(subject.id, **more) for subject in subjects]


def _hides_its_old_key(mesh: Mesh, node: SimNode) -> None:
    """Let a node go on with renewed grants alone, without the succession behind them."""
    node.mesh.context.standings.set_own(_renewed(mesh, node.mesh.context.identity)[0])
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
    regrants = server.mesh.context.standings.regrants
    again = Regrants()
    again.restore([b"", _succession(), _renewed(mesh, OTHER)[0][-1], *regrants.said], AUTHORITY.identity.id)
    assert again.said == regrants.said == list(_chain(NEW)), "also after a restart"


def test_a_grant_of_its_own_keeps_a_thiefs_key_no_roles_that_it_had_of_the_stolen_one() -> None:
    mesh = Mesh()
    server, node = mesh.node("db"), _rotated(mesh, NEW)
    connection = mesh.dial(node, server)
    node.mesh.context.standings.set_own(mesh.grant(NEW, "guest", expires=MS + 90 * DAY))
    node.on_dirty()
    mesh.world.run(1.0)
    assert server.mesh.context.standings.caller(NEW.id).roles == {"guest"}
    _hides_its_old_key(mesh, node)
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
