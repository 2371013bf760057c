"""Chains of grants, against a naive oracle: what a chain gives, each of its issuers could give; parsers are total."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.base.wire import WireError
from meshnode.errors import ConfigError, GrantError, GrantReject
from meshnode.identity.keys import Identity
from meshnode.trust.authority import Issuer, parse_chain
from meshnode.trust.chain import Chain, verify_chain
from meshnode.trust.grant import Delegation, is_signed, open_grant
from meshnode.trust.names import covers
from meshnode.trust.ticket import parse_ticket

KEYS = [Identity(bytes([n]) * 32) for n in range(1, 6)]
AUTHORITY = KEYS[0]
ROLES, PATTERNS = ["a", "b", "c"], ["*", "w*", "we*", "web", "d*", "db"]
SERVICES = ["web", "we", "wood", "db", "d", "x", "w*"]
NOW = 1_000_000

names = st.one_of(st.none(), st.lists(st.sampled_from(ROLES), max_size=3))
patterns = st.one_of(st.none(), st.lists(st.sampled_from(PATTERNS), max_size=3))
times = st.integers(NOW - 3, NOW + 3)
sorted_names = names.map(lambda found: None if found is None else tuple(sorted(set(found))))
sorted_patterns = patterns.map(lambda found: None if found is None else tuple(sorted(set(found))))
delegations = st.builds(Delegation, sorted_names, sorted_patterns, st.integers(1, 3), times, st.just(0), st.booleans())
links = st.fixed_dictionaries(
    {
        "roles": st.lists(st.sampled_from(ROLES), max_size=2),
        "services": patterns,
        "not_before": st.integers(NOW - 3, NOW),
        "expires": st.integers(NOW, NOW + 3),
        "delegation": st.one_of(st.none(), delegations),
    }
)


def _chain(said: list[dict[str, Any]]) -> Chain:
    """Each grant made by the subject of the one before, unchecked."""
    return tuple(
        Issuer(KEYS[at]).issue(KEYS[at + 1].id, **link, entropy=lambda count: bytes(count))[0]
        for at, link in enumerate(said)
    )


def _gives(link: dict[str, Any], role: str, service: str) -> bool:
    return role in link["roles"] and covers(link["services"], service)


def _may_give(may: Delegation | None, role: str, service: str) -> bool:
    return may is not None and (may.roles is None or role in may.roles) and covers(may.services, service)


@given(st.lists(links, min_size=1, max_size=4))
@settings(max_examples=400)
def test_a_chain_that_holds_gives_nothing_that_one_of_its_issuers_could_not_give(said: list[dict[str, Any]]) -> None:
    try:
        standing = verify_chain(_chain(said), KEYS[len(said)].id, AUTHORITY.id, NOW / 1000)
    except GrantError:
        return
    last = said[-1]
    assert (standing.roles, standing.expires) == (set(last["roles"]), last["expires"])
    for above in said[:-1]:
        for role in ROLES:
            for service in SERVICES:
                assert not _gives(last, role, service) or _may_give(above["delegation"], role, service)
        assert above["not_before"] <= standing.not_before <= above["delegation"].until
        assert standing.expires <= above["expires"]
        assert not (standing.delegation and standing.delegation.renews) or above["delegation"].renews
    depths = [link["delegation"].depth if link["delegation"] else 0 for link in said]
    assert all(lower < upper for upper, lower in pairwise(depths))


def _holds(said: list[dict[str, Any]]) -> bool:
    """The rules once more, one by one, with sets of what each pattern means."""
    for above, below in pairwise(said):
        may, given_ = above["delegation"], below["delegation"]
        if may is None or below["not_before"] < above["not_before"] or below["expires"] > above["expires"]:
            return False
        if below["not_before"] > may.until:
            return False
        for roles, services in [(below["roles"], below["services"])] + (
            [(given_.roles, given_.services)] if given_ else []
        ):
            if may.roles is not None and (roles is None or not set(roles) <= set(may.roles)):
                return False
            if may.services is not None and (services is None or not _meant(services) <= _meant(may.services)):
                return False
        if given_ and (given_.depth >= may.depth or given_.until > may.until or given_.renews > may.renews):
            return False
    return not (said[-1]["delegation"] and said[-1]["services"] == [])  # the key of a ticket is no node


def _meant(services: Any) -> set[str]:
    """All names of three letters that patterns mean: enough to tell the patterns of this test apart."""
    letters = "bdeowx*"
    every = [a + b + c for a in ["", *letters] for b in ["", *letters] for c in ["", *letters]]
    return {name for name in every if any(name == p or (p[-1] == "*" and name.startswith(p[:-1])) for p in services)}


@given(st.lists(links, min_size=1, max_size=4))
@settings(max_examples=400)
def test_a_chain_holds_exactly_when_each_grant_lies_within_the_one_before(said: list[dict[str, Any]]) -> None:
    try:
        verify_chain(_chain(said), KEYS[len(said)].id, AUTHORITY.id, NOW / 1000)
        holds = True
    except GrantError as error:
        assert error.reason is not GrantReject.FORGED
        holds = False
    assert holds == _holds(said)


GOOD = _chain([{"roles": ["a"], "services": ["w*"], "not_before": NOW, "expires": NOW, "delegation": None}])[0]


@given(st.integers(0, len(GOOD) * 8 - 1))
def test_no_bit_of_a_grant_can_be_changed(bit: int) -> None:
    changed = bytearray(GOOD)
    changed[bit // 8] ^= 1 << bit % 8
    try:
        assert not is_signed(open_grant(bytes(changed)))
    except GrantError:
        pass


@given(st.one_of(st.binary(max_size=1200), st.binary(max_size=200).map(lambda tail: GOOD[:64] + tail)))
def test_whatever_bytes_are_taken_for_a_grant_there_is_a_named_refusal(data: bytes) -> None:
    try:
        open_grant(data)
        raise AssertionError("a grant was found in noise")
    except GrantError as error:
        assert error.reason in GrantReject


@given(st.one_of(st.text(max_size=300), st.from_regex(r"mesh-[a-z2-7]{0,300}", fullmatch=True)))
def test_whatever_text_is_taken_for_a_ticket_is_refused_as_a_setting_is(text: str) -> None:
    try:
        parse_ticket(text)
        raise AssertionError("a ticket was found in noise")
    except ConfigError as error:
        assert error.hint


@given(st.binary(max_size=300))
def test_whatever_bytes_are_taken_for_a_chain_only_a_wire_error_leaves(data: bytes) -> None:
    try:
        parse_chain(data)
    except WireError:
        pass
