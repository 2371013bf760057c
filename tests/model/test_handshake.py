"""The symbolic model of the handshake: it holds what was promised, and each defence that is left out is missed."""

from __future__ import annotations

import pytest

from tests.model.checker import (
    AGREEMENT,
    FORWARD,
    KNOCKS,
    QUANTUM,
    QUICK,
    SCENES,
    SECRECY,
    STRONGEST,
    UNKNOWN_SHARE,
    Scene,
    check,
)
from tests.model.protocol import Defence
from tests.model.terms import Knowledge, agent, dh, mac, seal, share, sign, tup

STOLEN = tuple(scene for scene in SCENES if scene.stolen == "B")
MISSED = [
    ((Defence.KNOCK_NAMES,), KNOCKS, SCENES),
    ((Defence.KNOCK_CONNECTION,), KNOCKS, QUICK),
    ((Defence.KNOCK_ONCE,), KNOCKS, QUICK),
    ((Defence.CERTIFICATE_KEY,), SECRECY, QUICK),
    ((Defence.CERTIFICATE_SIGNATURE,), SECRECY, QUICK),
    ((Defence.TRANSCRIPT,), SECRECY, QUICK),
    ((Defence.GROUPS,), STRONGEST, QUICK),
    ((Defence.HELLO_SIGNATURE,), AGREEMENT, QUICK),
    ((Defence.HELLO_BINDING,), AGREEMENT, STOLEN),
    ((Defence.HELLO_LISTENER, Defence.HELLO_BINDING), AGREEMENT, STOLEN[1:]),
    ((Defence.EPHEMERAL,), FORWARD, QUICK),
    ((Defence.EPHEMERAL,), UNKNOWN_SHARE, QUICK),
    ((Defence.HYBRID,), QUANTUM, QUICK),
]


def test_in_no_interleaving_of_the_sessions_is_a_promise_broken() -> None:
    found = check()
    assert [str(attack) for attack in found.attacks.values()] == []
    assert found.states > 10_000


@pytest.mark.parametrize(("without", "promise", "scenes"), MISSED, ids=lambda value: str(value)[:40])
def test_a_defence_that_is_left_out_is_missed(
    without: tuple[Defence, ...], promise: str, scenes: tuple[Scene, ...]
) -> None:
    found = check(scenes, frozenset(without), until=promise)
    assert promise in found.attacks, f"{without} is of no use to {promise}"
    assert found.attacks[promise].trace


def test_every_defence_is_left_out_once_and_every_promise_broken_once() -> None:
    assert {defence for without, _, _ in MISSED for defence in without} == set(Defence)
    promises = {SECRECY, AGREEMENT, UNKNOWN_SHARE, KNOCKS, STRONGEST, FORWARD, QUANTUM}
    assert {promise for _, promise, _ in MISSED} == promises


def test_where_the_hello_is_bound_to_tls_its_names_stand_behind_a_second_door() -> None:
    assert check(STOLEN, frozenset({Defence.HELLO_LISTENER})).attacks == {}


# ---- the attacker itself: what it cannot do is as important as what it can

KEY, SECRET = ("exp", "k"), ("data", "s")


def test_the_attacker_opens_what_it_has_the_key_of_and_nothing_else() -> None:
    sealed = seal(KEY, tup(SECRET, agent("A")))
    assert not Knowledge([sealed]).builds(SECRET)
    assert Knowledge([sealed, KEY]).builds(SECRET)
    assert Knowledge([seal(KEY, sealed), KEY]).builds(SECRET)
    assert Knowledge([sealed]).builds(sealed)


def test_the_attacker_makes_no_mac_and_no_signature_without_the_key() -> None:
    assert not Knowledge().builds(sign("A", agent("B")))
    assert Knowledge([("sk", "A")]).builds(sign("A", agent("B")))
    assert Knowledge([sign("A", SECRET)]).builds(SECRET)
    assert not Knowledge([SECRET]).builds(mac(KEY, SECRET))


def test_the_attacker_has_the_secret_of_two_exponents_with_one_of_them_and_the_others_share() -> None:
    one, other = ("exp", "1"), ("exp", "2")
    assert not Knowledge([share(one, True), share(other, True)]).builds(dh(one, other, True))
    assert Knowledge([one, share(other, True)]).builds(dh(other, one, True))
    assert not Knowledge([one]).builds(dh(one, other, True))
    seen = Knowledge([share(one, True), share(other, True)], quantum=True)
    assert seen.builds(dh(one, other, False))
    assert not seen.builds(dh(one, other, True))


def test_the_attacker_strips_a_hybrid_share_and_makes_none() -> None:
    one = ("exp", "1")
    assert Knowledge([share(one, True)]).builds(share(one, False))
    assert not Knowledge([share(one, False)]).builds(share(one, True))
