"""Sets of revocations: any order and any repetition of statements makes the same set; parsers are total."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import GrantError, GrantReject
from meshnode.identity.keys import Identity
from meshnode.trust import revocations as sets
from meshnode.trust.authority import Issuer
from meshnode.trust.grant import Delegation, grant_id
from meshnode.trust.revocation import Revocation, RevocationError, open_revocation, sign_revocation
from meshnode.trust.revocations import Revocations, differing
from meshnode.trust.succession import is_signed_by_both, is_succession, open_succession, sign_succession

AUTHORITY, DELEGATE, *NODES = (Identity(bytes([n]) * 32) for n in range(1, 8))
MS = 1_700_000_000_000
HOUR = 3_600_000
MAY = Delegation(None, None, 2, MS + HOUR)
OF_DELEGATE = Issuer(AUTHORITY).issue(DELEGATE.id, not_before=MS, expires=MS + HOUR, delegation=MAY, entropy=bytes)


def _made() -> list[Revocation]:
    """Statements of all kinds: of the authority, of a delegate, of keys about themselves, by two ways in."""
    found = []
    for n, node in enumerate(NODES):
        by_delegate = Issuer(DELEGATE, OF_DELEGATE).issue(node.id, not_before=MS, expires=MS + HOUR - n, entropy=bytes)
        direct = Issuer(AUTHORITY).issue(node.id, not_before=MS, expires=MS + HOUR + n, entropy=bytes)
        for time in (MS, MS + 1 + n):
            found.append(sign_revocation(AUTHORITY, bytes(node.id), time=time))
            found.append(sign_revocation(AUTHORITY, bytes.fromhex(grant_id(direct[0])), time=time, ends=MS + HOUR + n))
            found.append(sign_revocation(DELEGATE, bytes(node.id), time=time, chain=OF_DELEGATE))
            for target in (node, NODES[n - 1]):  # of another one it says nothing that counts
                found += [
                    sign_revocation(node, bytes(target.id), time=time, chain=chain) for chain in (by_delegate, direct)
                ]
    return found


MADE = _made()


def _set(statements: list[Revocation]) -> Revocations:
    held = Revocations(AUTHORITY.id)
    for each in statements:
        held.add(each, MS / 1000)
    return held


@given(st.lists(st.sampled_from(MADE), max_size=60), st.randoms(use_true_random=False), st.integers(1, 6))
@settings(max_examples=200)
def test_any_order_and_repetition_makes_the_same_set_also_where_it_is_full(
    statements: list[Revocation], rng: random.Random, most: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MAX_REVOCATIONS", "MAX_REVOCATIONS_SHARE", "MAX_OTHER_REVOCATIONS"):
            patch.setattr(sets, name, most + (name == "MAX_OTHER_REVOCATIONS"))
        one = _set(statements)
        again = [*statements, *rng.choices(statements, k=5)] if statements else []
        rng.shuffle(again)
        other = _set(again)
    assert [each.encoded for each in one] == [each.encoded for each in other]
    assert differing(one.prints(), other.prints()) == []
    for node in NODES:
        assert one.has(node.id) == other.has(node.id)


@given(st.lists(st.sampled_from(MADE), max_size=30), st.lists(st.sampled_from(MADE), max_size=30))
@settings(max_examples=60)
def test_two_nodes_that_exchange_what_each_lacks_have_one_set(one: list[Revocation], other: list[Revocation]) -> None:
    a, b = _set(one), _set(other)
    for _ in range(2):
        for ours, theirs in ((a, b), (b, a)):
            for bucket in differing(ours.prints(), theirs.prints()):
                for encoded in theirs.others(bucket, ours.names(bucket)):
                    ours.add(open_revocation(encoded, AUTHORITY.id, MS / 1000 + 60), MS / 1000)
    assert differing(a.prints(), b.prints()) == []


@given(st.binary(max_size=400))
def test_bytes_that_are_no_statement_raise_its_own_error(data: bytes) -> None:
    for parse in (lambda: open_revocation(data, AUTHORITY.id, 0.0), lambda: open_succession(data)):
        try:
            parse()
        except (RevocationError, GrantError):
            pass
        else:
            raise AssertionError("random bytes are signed")


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_no_bit_of_a_statement_can_be_changed(at: int, bit: int) -> None:
    succession = sign_succession(DELEGATE, NODES[0], time=MS, ends=MS)
    for encoded in (MADE[0].encoded, succession):
        data = bytearray(encoded)
        data[at % len(data)] ^= 1 << bit
        with pytest.raises((RevocationError, GrantError)):
            if encoded is not succession:
                open_revocation(bytes(data), AUTHORITY.id, MS / 1000)
            elif not is_succession(bytes(data)) or not (
                open_succession(bytes(data)) and is_signed_by_both(bytes(data))
            ):
                raise GrantError(GrantReject.FORGED)
