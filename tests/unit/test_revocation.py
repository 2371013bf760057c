"""Revocations: what each issuer may revoke, what is no statement, and what a full set keeps."""

from __future__ import annotations

from typing import Any

import pytest

from meshnode.base.limits import GRANT_SKEW_S, MAX_OTHER_REVOCATIONS, MAX_REVOCATIONS_SHARE
from meshnode.cli.commands.revoke import _tell
from meshnode.errors import GrantError, GrantReject, InvalidId
from meshnode.identity.keys import Identity
from meshnode.trust import revocations as sets
from meshnode.trust.authority import Issuer
from meshnode.trust.chain import Chain, verify_chain
from meshnode.trust.grant import LAST_MS, Delegation, grant_id
from meshnode.trust.revocation import (
    Revocation,
    RevocationError,
    RevocationReject,
    open_revocation,
    parse_target,
    sign_revocation,
)
from meshnode.trust.revocations import BUCKETS, Revocations, differing
from meshnode.trust.succession import sign_succession

AUTHORITY, DELEGATE, NODE, OTHER, STRANGER = (Identity(bytes([n]) * 32) for n in range(1, 6))
WALL = 1_700_000_000.0
MS = int(WALL * 1000)
HOUR = 3_600_000
RIGHT = Delegation(("web",), None, 2, MS + HOUR)


def _issue(issuer: Issuer, subject: Identity, **more: Any) -> Chain:
    said = {"roles": ["web"], "not_before": MS, "expires": MS + HOUR, "entropy": bytes} | more
    return issuer.issue(subject.id, **said)


BY_AUTHORITY = _issue(Issuer(AUTHORITY), DELEGATE, delegation=RIGHT)
BY_DELEGATE = _issue(Issuer(DELEGATE, BY_AUTHORITY), NODE)
DIRECT = _issue(Issuer(AUTHORITY), NODE)


def _revoke(issuer: Identity, target: bytes, chain: Chain = (), time: int = MS, **more: Any) -> Revocation:
    return sign_revocation(issuer, target, time=time, chain=chain, **more)


def _set(*statements: Revocation, wall: float = WALL) -> Revocations:
    found = Revocations(AUTHORITY.id)
    for each in statements:
        found.add(open_revocation(each.encoded, AUTHORITY.id, wall), wall)
    return found


def _holds(revoked: Revocations, chain: Chain, subject: Identity) -> bool:
    try:
        verify_chain(chain, subject.id, AUTHORITY.id, WALL, revoked.covers)
    except GrantError as error:
        assert error.reason is GrantReject.REVOKED
        return False
    return True


def _grant(chain: Chain, at: int = -1) -> bytes:
    return bytes.fromhex(grant_id(chain[at]))


def test_the_authority_revokes_any_key_and_all_that_follows_from_it() -> None:
    for target in (DELEGATE, NODE):
        assert not _holds(_set(_revoke(AUTHORITY, bytes(target.id))), BY_DELEGATE, NODE)
    revoked = _set(_revoke(AUTHORITY, bytes(DELEGATE.id)))
    assert _holds(revoked, DIRECT, NODE)
    assert revoked.has(DELEGATE.id)
    assert not revoked.has(NODE.id)


def test_the_authority_revokes_one_grant_and_the_others_of_that_key_stay() -> None:
    revoked = _set(_revoke(AUTHORITY, _grant(BY_DELEGATE)))
    assert not _holds(revoked, BY_DELEGATE, NODE)
    assert _holds(revoked, DIRECT, NODE)
    assert not _holds(_set(_revoke(AUTHORITY, _grant(BY_AUTHORITY))), BY_DELEGATE, NODE)


@pytest.mark.parametrize("target", [bytes(NODE.id), _grant(BY_DELEGATE)])
def test_a_delegate_revokes_what_its_grants_made_and_nothing_else(target: bytes) -> None:
    revoked = _set(_revoke(DELEGATE, target, BY_AUTHORITY))
    assert not _holds(revoked, BY_DELEGATE, NODE)
    assert _holds(revoked, DIRECT, NODE), "the authority made this one"
    assert not revoked.has(NODE.id)
    above = _set(_revoke(NODE, bytes(DELEGATE.id), BY_DELEGATE))
    assert _holds(above, BY_DELEGATE, NODE)
    assert _holds(above, BY_AUTHORITY, DELEGATE)


@pytest.mark.parametrize("target", [bytes(OTHER.id), bytes(8)])
def test_renewed_grants_fall_with_what_they_say_that_they_rest_on(target: bytes) -> None:
    may = Delegation(("web",), None, 1, MS + HOUR, renews=True)
    renewer = _issue(Issuer(AUTHORITY), DELEGATE, delegation=may)
    chain = _issue(Issuer(DELEGATE, renewer), NODE, lineage=(bytes(OTHER.id), bytes(8)))
    assert _holds(_set(_revoke(AUTHORITY, bytes([1]) * 8)), chain, NODE)
    for issuer, shown in ((AUTHORITY, ()), (DELEGATE, renewer)):
        assert not _holds(_set(_revoke(issuer, target, shown)), chain, NODE), "the renewer has made it"
    other = _issue(Issuer(AUTHORITY), OTHER)
    is_own = target == bytes(OTHER.id)
    assert _holds(_set(_revoke(OTHER, target, other)), chain, NODE) is not is_own


def test_a_key_revokes_itself_with_all_that_it_granted() -> None:
    revoked = _set(_revoke(DELEGATE, bytes(DELEGATE.id), BY_AUTHORITY))
    assert revoked.has(DELEGATE.id)
    assert not _holds(revoked, BY_AUTHORITY, DELEGATE)
    assert not _holds(revoked, BY_DELEGATE, NODE)


def _changed(statement: Revocation, at: int) -> bytes:
    data = bytearray(statement.encoded)
    data[at] ^= 1
    return bytes(data)


GOOD = _revoke(AUTHORITY, bytes(NODE.id), reason="lost")
REFUSED: dict[str, tuple[bytes, RevocationReject]] = {
    "nothing": (b"", RevocationReject.MALFORMED),
    "a grant": (DIRECT[0], RevocationReject.MALFORMED),
    "one with a changed signature": (_changed(GOOD, 3), RevocationReject.FORGED),
    "one with another issuer": (_changed(GOOD, 68), RevocationReject.FORGED),
    "of the authority itself": (
        sign_revocation(AUTHORITY, bytes(AUTHORITY.id), time=MS).encoded,
        RevocationReject.MALFORMED,
    ),
    "of a stranger": (_revoke(STRANGER, bytes(NODE.id)).encoded, RevocationReject.UNPROVEN),
    "of a stranger about itself": (_revoke(STRANGER, bytes(STRANGER.id)).encoded, RevocationReject.UNPROVEN),
    "of a stranger that shows another's grants": (
        _revoke(STRANGER, bytes(NODE.id), DIRECT).encoded,
        RevocationReject.UNPROVEN,
    ),
    "from the future": (
        _revoke(AUTHORITY, bytes(NODE.id), time=MS + int(GRANT_SKEW_S * 1000) + 1).encoded,
        RevocationReject.FUTURE,
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_revocation_is_refused_by_name(what: str) -> None:
    encoded, why = REFUSED[what]
    with pytest.raises(RevocationError) as caught:
        open_revocation(encoded, AUTHORITY.id, WALL)
    assert caught.value.reason is why


def test_a_member_whose_grants_had_expired_may_revoke_nothing() -> None:
    late = _revoke(NODE, bytes(NODE.id), DIRECT, time=MS + 2 * HOUR)
    with pytest.raises(RevocationError) as caught:
        open_revocation(late.encoded, AUTHORITY.id, WALL + 7200)
    assert caught.value.reason is RevocationReject.UNPROVEN


def test_a_statement_that_is_said_again_changes_nothing() -> None:
    revoked = _set(GOOD)
    before = revoked.prints()
    assert not revoked.add(GOOD, WALL)
    assert (len(revoked), revoked.prints()) == (1, before)


def test_a_member_that_says_the_same_again_with_ever_later_dates_is_seldom_taken() -> None:
    long = _issue(Issuer(AUTHORITY), NODE, expires=MS + 90 * 24 * HOUR)
    revoked = Revocations(AUTHORITY.id)
    said = [_revoke(NODE, bytes(OTHER.id), long, MS + n, ends=MS + HOUR + n) for n in range(1_000)]
    taken = sum(revoked.add(each, WALL) for each in said)
    assert 0 < taken < 30, "by the order of their names, which is random: 7 on average"
    assert len(revoked) == 1
    assert revoked.add(_revoke(NODE, bytes(OTHER.id), long, MS + 24 * HOUR, ends=LAST_MS), WALL)


def test_a_statement_goes_when_no_grant_that_it_means_can_hold_any_more() -> None:
    ends = MS + HOUR
    revoked = _set(_revoke(AUTHORITY, _grant(DIRECT), ends=ends), GOOD)
    revoked.expire(WALL + 3600 + GRANT_SKEW_S)
    assert len(revoked) == 2
    revoked.expire(WALL + 3600 + GRANT_SKEW_S + 1)
    assert [each.encoded for each in revoked] == [GOOD.encoded]
    assert not revoked.add(_revoke(AUTHORITY, _grant(DIRECT), ends=ends), WALL + 7200), "nor does it come back"
    assert not _holds(revoked, DIRECT, NODE)


def test_keys_of_one_invitation_cannot_push_out_what_others_revoked() -> None:
    honest = _revoke(NODE, bytes(NODE.id), DIRECT)
    revoked = _set(honest)
    for n in range(2 * MAX_REVOCATIONS_SHARE):
        key = Identity(n.to_bytes(32, "big"))
        chain = _issue(Issuer(DELEGATE, BY_AUTHORITY), key, expires=MS + HOUR)
        revoked.add(_revoke(key, bytes(key.id), chain), WALL)
    assert len(revoked) == 1 + MAX_REVOCATIONS_SHARE
    assert revoked.has(NODE.id)
    assert revoked.dropped == MAX_REVOCATIONS_SHARE


@pytest.mark.parametrize("bound", ["MAX_REVOCATIONS_SHARE", "MAX_OTHER_REVOCATIONS"])
def test_one_key_by_many_statements_pushes_out_nothing_that_others_said(
    bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets, bound, 8)
    made = Issuer(DELEGATE, BY_AUTHORITY)
    revoked = _set(_revoke(NODE, bytes(NODE.id), BY_DELEGATE), _revoke(DELEGATE, bytes(OTHER.id), BY_AUTHORITY))
    chain = _issue(made, STRANGER)
    for n in range(20):
        revoked.add(_revoke(STRANGER, bytes([n]) * 32, chain, MS + 1 + n), WALL)
    assert len(revoked) == 8
    assert revoked.has(NODE.id), "though what came later would stay by its time"
    assert not _holds(revoked, _issue(made, OTHER), OTHER)
    itself = _revoke(STRANGER, bytes(STRANGER.id), chain, MS)
    assert revoked.add(itself, WALL), "what a key says of itself is its first"


def test_the_authoritys_statements_have_places_that_no_other_key_can_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "MAX_OTHER_REVOCATIONS", 8)
    assert MAX_OTHER_REVOCATIONS > MAX_REVOCATIONS_SHARE
    revoked = _set(GOOD)
    for n in range(20):
        key = Identity(n.to_bytes(32, "big"))
        revoked.add(_revoke(key, bytes(key.id), _issue(Issuer(AUTHORITY), key)), WALL)
    assert len(revoked) == 1 + 8
    assert revoked.has(NODE.id)


def test_a_full_set_of_the_authority_keeps_the_newest_of_what_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "MAX_REVOCATIONS", 3)
    keys = [Identity(n.to_bytes(32, "big")) for n in range(5)]
    made = [_revoke(AUTHORITY, bytes(key.id), time=MS - n, ends=LAST_MS) for n, key in enumerate(keys)]
    for order in (made, made[::-1]):
        revoked = _set(*order)
        assert [revoked.has(key.id) for key in keys] == [True, True, True, False, False]


def test_two_sets_find_what_each_lacks_by_their_prints() -> None:
    keys = [Identity(n.to_bytes(32, "big")) for n in range(40)]
    made = [_revoke(AUTHORITY, bytes(key.id)) for key in keys]
    one, other = _set(*made[:30]), _set(*made[10:])
    buckets = differing(one.prints(), other.prints())
    assert 0 < len(buckets) <= BUCKETS
    missing = [each for bucket in buckets for each in other.others(bucket, one.names(bucket))]
    assert sorted(missing) == sorted(each.encoded for each in made[30:])
    assert differing(one.prints(), _set(*made[29::-1]).prints()) == []


def test_a_key_that_replaced_another_revokes_itself_with_the_others_grants() -> None:
    chain = (*DIRECT, sign_succession(NODE, OTHER, time=MS, ends=MS + HOUR))
    revoked = _set(_revoke(OTHER, bytes(OTHER.id), chain))
    assert revoked.has(OTHER.id)
    assert not revoked.has(NODE.id)


def test_a_target_is_a_nodes_id_or_a_grants() -> None:
    assert parse_target(str(NODE.id)) == bytes(NODE.id)
    assert parse_target(grant_id(DIRECT[0])) == _grant(DIRECT)
    with pytest.raises(InvalidId):
        parse_target("0123")


@pytest.mark.parametrize(
    ("everywhere", "formers", "said"),
    [(True, [], "every node hears of it"), (False, [], "where a grant of this delegate"), (True, ["x"], "replaced x:")],
)
def test_a_revocation_that_was_taken_is_told_with_where_it_counts(
    capsys: pytest.CaptureFixture[str], everywhere: bool, formers: list[str], said: str
) -> None:
    _tell({"kind": "key", "id": "y", "everywhere": everywhere, "formers": formers}, as_json=False)
    told = capsys.readouterr().out
    assert said in told
    assert len(told.splitlines()) == 1 + len(formers)
