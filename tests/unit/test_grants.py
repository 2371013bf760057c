"""Grants and chains: what is refused, why, and that nothing costly happens before it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from meshnode.base.limits import GRANT_SKEW_S, MAX_GRANT, MAX_LINEAGE
from meshnode.base.wire import decode
from meshnode.errors import ConfigError, GrantError, GrantReject
from meshnode.identity.envelope import sign_envelope
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.trust import chain as chains
from meshnode.trust import grant as grants
from meshnode.trust.authority import Issuer, pack_chain, parse_chain
from meshnode.trust.chain import Chain, Standing, verify_chain
from meshnode.trust.grant import Delegation, Grant
from meshnode.trust.ticket import Ticket, format_ticket, make_ticket, parse_ticket, redeem

AUTHORITY, DELEGATE, NODE, OTHER = (Identity(bytes([n]) * 32) for n in range(1, 5))
WALL = 1_700_000_000.0
MS = int(WALL * 1000)
HOUR = 3_600_000
RIGHT = Delegation(("db", "web"), ("web*",), 2, MS + HOUR)


def entropy(count: int) -> bytes:
    return bytes(count)


def issue(issuer: Issuer, subject: Identity, **changes: Any) -> Chain:
    said = {"roles": ["web"], "services": ["web1"], "not_before": MS, "expires": MS + HOUR, "entropy": entropy}
    return issuer.issue(subject.id, **(said | changes))


def delegate(**changes: Any) -> Issuer:
    return Issuer(DELEGATE, issue(Issuer(AUTHORITY), DELEGATE, **({"delegation": RIGHT} | changes)))


def unchecked(issuer: Issuer, subject: Identity, **changes: Any) -> Chain:
    """A chain that its maker did not check, as an attacker's."""
    return (*issuer.chain, issue(Issuer(issuer.identity), subject, **changes)[0])


def verify(chain: Chain, subject: Identity = NODE, wall: float = WALL, **more: Any) -> Standing:
    return verify_chain(chain, subject.id, AUTHORITY.id, wall, **more)


def reason(chain: Chain, **more: Any) -> GrantReject:
    with pytest.raises(GrantError) as caught:
        verify(chain, **more)
    return caught.value.reason


def test_a_delegate_gives_what_it_may_and_the_last_grant_says_what_that_is() -> None:
    standing = verify(issue(delegate(), NODE))
    assert (standing.id, standing.roles, standing.services) == (NODE.id, {"web"}, ("web1",))
    assert standing.keys == (AUTHORITY.id, DELEGATE.id, NODE.id)
    assert len(standing.grants) == 2
    assert standing.delegation is None


WIDER: dict[str, tuple[dict[str, Any], GrantReject]] = {
    "a role": ({"roles": ["admin"]}, GrantReject.WIDER),
    "all services": ({"services": None}, GrantReject.WIDER),
    "a wider pattern": ({"services": ["we*"]}, GrantReject.WIDER),
    "another service": ({"services": ["db"]}, GrantReject.WIDER),
    "an earlier begin": ({"not_before": MS - 1}, GrantReject.OUTLIVES),
    "a later end": ({"expires": MS + HOUR + 1}, GrantReject.OUTLIVES),
    "a delegation of the same depth": ({"delegation": RIGHT}, GrantReject.TOO_DEEP),
    "a delegation of more roles": ({"delegation": Delegation(None, ("web*",), 1, MS)}, GrantReject.WIDER),
    "a delegation of more services": ({"delegation": Delegation(("web",), None, 1, MS)}, GrantReject.WIDER),
    "a delegation for longer": ({"delegation": Delegation((), (), 1, MS + 2 * HOUR)}, GrantReject.WIDER),
    "a right to renew": ({"delegation": Delegation((), (), 1, MS, renews=True)}, GrantReject.WIDER),
}


@pytest.mark.parametrize("what", WIDER)
def test_a_delegate_gives_no_more_than_it_may(what: str) -> None:
    changes, why = WIDER[what]
    assert reason(unchecked(delegate(), NODE, **changes)) is why
    with pytest.raises(GrantError) as caught:
        issue(delegate(), NODE, **changes)
    assert caught.value.reason is why, "its maker is told at once"


def _late() -> Chain:
    may = delegate(delegation=Delegation(("web",), None, 1, MS - 1))
    return unchecked(may, NODE)


def _by_a_stranger() -> Chain:
    return (*delegate().chain, issue(Issuer(OTHER), NODE)[0])


def _forged() -> Chain:
    first, last = issue(delegate(), NODE)
    return (bytes([first[0] ^ 1]) + first[1:], last)


REFUSED: dict[str, tuple[Callable[[], Chain], GrantReject]] = {
    "none": (lambda: (), GrantReject.MISSING),
    "five": (lambda: issue(delegate(), NODE)[:1] * 5, GrantReject.TOO_LONG),
    "a large one": (lambda: (bytes(MAX_GRANT + 1),), GrantReject.OVERSIZED),
    "another key's": (lambda: issue(delegate(), OTHER), GrantReject.OTHER_KEY),
    "another authority's": (lambda: issue(Issuer(OTHER), NODE), GrantReject.OTHER_AUTHORITY),
    "one signed by a stranger": (_by_a_stranger, GrantReject.BROKEN),
    "one of a node that may give none": (lambda: unchecked(delegate(delegation=None), NODE), GrantReject.NO_DELEGATE),
    "one made when the right was over": (_late, GrantReject.TOO_LATE),
    "a delegate's own, forged": (_forged, GrantReject.FORGED),
    "the first half": (lambda: issue(delegate(), NODE)[:1], GrantReject.OTHER_KEY),
    "the second half": (lambda: issue(delegate(), NODE)[1:], GrantReject.OTHER_AUTHORITY),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_chain_that_does_not_hold_is_refused_by_name(what: str) -> None:
    make, why = REFUSED[what]
    assert reason(make()) is why


def test_dates_are_held_but_for_the_difference_of_clocks() -> None:
    chain, skew = issue(delegate(), NODE), GRANT_SKEW_S
    assert verify(chain, wall=WALL - skew).id == NODE.id
    assert verify(chain, wall=WALL + 3600 + skew).id == NODE.id
    assert reason(chain, wall=WALL - skew - 1) is GrantReject.NOT_YET
    assert reason(chain, wall=WALL + 3600 + skew + 1) is GrantReject.EXPIRED


def _keys(grants: Sequence[Grant]) -> set[NodeId]:
    return {key for grant in grants for key in (grant.issuer, grant.subject)}


@pytest.mark.parametrize("key", [AUTHORITY, DELEGATE, NODE])
def test_a_revoked_key_takes_with_it_all_that_follows_from_it(key: Identity) -> None:
    chain = issue(delegate(), NODE)
    assert reason(chain, is_revoked=lambda grants: key.id in _keys(grants)) is GrantReject.REVOKED
    assert verify(chain, is_revoked=lambda grants: OTHER.id in _keys(grants)).id == NODE.id


def test_no_signature_is_checked_of_a_chain_that_fails_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[object] = []
    monkeypatch.setattr(chains, "is_signed", checked.append)
    for make, why in REFUSED.values():
        if why is not GrantReject.FORGED:
            reason(make())
    for changes, _ in WIDER.values():
        reason(unchecked(delegate(), NODE, **changes))
    reason(issue(delegate(), NODE), wall=WALL + 10_000)
    assert checked == []


def test_a_chain_for_another_key_is_not_even_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[object] = []
    monkeypatch.setattr(chains, "open_grant", parsed.append)
    assert reason(issue(delegate(), OTHER)) is GrantReject.OTHER_KEY
    assert reason(issue(Issuer(OTHER), NODE)) is GrantReject.OTHER_AUTHORITY
    assert reason(_by_a_stranger()) is GrantReject.BROKEN
    assert parsed == []


@pytest.mark.parametrize(
    "changes",
    [
        {"roles": ["Web"]},
        {"roles": ["x" * 33]},
        {"roles": [f"r{n}" for n in range(9)]},
        {"services": [""]},
        {"services": ["a\n"]},
        {"services": ["x" * 65]},
        {"expires": MS - 1},
        {"delegation": Delegation((), (), 0, MS)},
        {"delegation": Delegation((), (), 4, MS)},
        {"delegation": Delegation((), (), 2, MS, uses=1)},
        {"lineage": (bytes(9),)},
        {"lineage": (bytes(31),)},
        {"lineage": (bytes(8), bytes(8))},
        {"lineage": tuple(bytes([n]) * 8 for n in range(MAX_LINEAGE + 1))},
    ],
)
def test_a_grant_with_a_field_out_of_its_bounds_cannot_be_made(changes: dict[str, Any]) -> None:
    with pytest.raises(GrantError) as caught:
        issue(Issuer(AUTHORITY), NODE, **changes)
    assert caught.value.reason is GrantReject.MALFORMED


def test_a_grant_without_a_lineage_has_one_form() -> None:
    item = decode(issue(Issuer(AUTHORITY), NODE)[0][64:], MAX_GRANT)
    assert isinstance(item, list)
    for more in ([[]], [[bytes(8)], 1]):
        with pytest.raises(GrantError) as caught:
            grants.open_grant(sign_envelope(AUTHORITY, grants.DOMAIN, [*item, *more], MAX_GRANT))
        assert caught.value.reason is GrantReject.MALFORMED


@pytest.mark.parametrize("field", ["roles", "services"])
def test_names_out_of_order_or_twice_are_no_second_form_of_a_grant(field: str) -> None:
    said: dict[str, Any] = {"roles": ("web",), "services": None, "not_before": MS, "expires": MS, "delegation": None}
    for names in (("b", "a"), ("a", "a")):
        with pytest.raises(GrantError):
            grants.sign_grant(AUTHORITY, NODE.id, **(said | {field: names}), serial=bytes(8))


def test_a_chain_is_at_most_four_long() -> None:
    issuer = Issuer(AUTHORITY)
    for n in (3, 2, 1):
        key = Identity(bytes([20 + n]) * 32)
        right = Delegation(None, None, n, MS + HOUR)
        issuer = Issuer(key, issue(issuer, key, roles=[], services=None, delegation=right))
    chain = issue(issuer, NODE)
    assert len(chain) == 4
    assert verify(chain).roles == {"web"}
    with pytest.raises(GrantError) as caught:
        issue(Issuer(NODE, chain), OTHER)
    assert caught.value.reason is GrantReject.TOO_LONG


# ---- tickets


def ticket(**changes: Any) -> Ticket:
    said: dict[str, Any] = {
        "roles": ("web",),
        "services": None,
        "now": MS,
        "until": MS + HOUR,
        "expires": MS + 24 * HOUR,
        "uses": 1,
        "entropy": lambda count: bytes([9]) * count,
    }
    issuer = Issuer(AUTHORITY)
    return make_ticket(issuer, "field", bytes(range(32)), AUTHORITY.id, (f"{OTHER.id}@h:1",), **(said | changes))


def test_a_ticket_makes_a_grant_for_a_new_key_without_asking_any_node() -> None:
    found = parse_ticket(format_ticket(ticket()))
    standing = verify(redeem(found, NODE.id, WALL, entropy))
    assert (standing.roles, standing.services, standing.expires) == ({"web"}, None, MS + 24 * HOUR)
    assert standing.invite is not None
    assert standing.invite.uses == 1


def test_a_ticket_is_read_as_people_and_programs_pass_it_on() -> None:
    text = format_ticket(ticket())
    assert text == text.lower()
    assert "\n" not in text
    wrapped = "\n".join(text[at : at + 72] for at in range(0, len(text), 72))
    for form in (text, f"  {text}\n", wrapped, text.upper()):
        assert parse_ticket(form) == ticket()


def test_a_ticket_with_one_character_changed_or_missing_is_refused() -> None:
    text = format_ticket(ticket())
    for at in range(0, len(text), 7):
        other = "b" if text[at] != "b" else "c"
        for damaged in (text[:at] + other + text[at + 1 :], text[:at] + text[at + 1 :]):
            with pytest.raises(ConfigError):
                parse_ticket(damaged)


def test_a_ticket_that_has_expired_makes_no_grant_and_one_that_is_dated_back_does_not_hold() -> None:
    with pytest.raises(GrantError) as caught:
        redeem(ticket(), NODE.id, WALL + 3601, entropy)
    assert caught.value.reason is GrantReject.TOO_LATE
    late = ticket()
    chain = unchecked(Issuer(Identity(late.invite), late.chain), NODE, not_before=MS + HOUR + 1, expires=MS + 2 * HOUR)
    assert reason(chain, wall=WALL + 3700) is GrantReject.TOO_LATE


def test_a_tickets_holder_gives_itself_no_other_role_and_no_right_to_invite() -> None:
    issuer = Issuer(Identity(ticket().invite), ticket().chain)
    assert reason(unchecked(issuer, NODE, roles=["admin"])) is GrantReject.WIDER
    right = Delegation((), (), 1, MS)
    assert reason(unchecked(issuer, NODE, delegation=right)) is GrantReject.TOO_DEEP


def test_a_chain_survives_its_file() -> None:
    chain = issue(delegate(), NODE)
    assert parse_chain(pack_chain(chain)) == chain
