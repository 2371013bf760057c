"""Names of nodes: the first claim counts, everywhere alike, and what was used here never changes in silence."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.limits import NAMES_MAX_CLAIMS, NAMES_MAX_PINS, NAMES_MAX_RIVALS
from meshnode.base.metrics import Metrics
from meshnode.base.wire import encode
from meshnode.directory.names import NameConflict, Names, PinsChanged
from meshnode.directory.services import Announce
from meshnode.errors import NameChanged, NameDisputed, NotFound
from meshnode.gossip.effects import Status
from meshnode.gossip.entry import Entry, Kind, sign_entry
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId, is_label, label_of

WALL = 1_800_000_000.0
ME, A, B, C = (Identity(bytes([i]) * 32) for i in range(1, 5))
SEQ = itertools.count(int(WALL * 1000))


def _claim(signer: Identity, first: float, name: str = "laptop", issued: float = WALL, value: Any = ...) -> Entry:
    return sign_entry(
        signer,
        kind=Kind.NAME,
        name=name,
        seq=next(SEQ),
        issued_ms=int(issued * 1000),
        ttl=86_400,
        value=encode(int(first * 1000)) if value is ... else value,
    )


def _names(statuses: dict[NodeId, Status] | None = None, **options: Any) -> Names:
    found = {} if statuses is None else statuses
    return Names(ME.id, Metrics(), lambda peer: found.get(peer, Status.ALIVE), **options)


def _told(names: Names) -> list[Any]:
    return [e for e in names.take_effects() if isinstance(e, NameConflict)]


@given(st.permutations([(A, 300.0), (B, 1_800_000_000.0), (C, 0.0)]), st.floats(0, 86_400))
def test_the_first_use_of_a_name_that_several_claim_names_them_all_whatever_dates_they_give(
    order: list[tuple[Identity, float]], age: float
) -> None:
    names = _names()
    for number, (signer, ago) in enumerate(order):
        names.on_entry(_claim(signer, WALL - ago), WALL + number * age / 3)
    for _ in range(2):
        with pytest.raises(NameDisputed) as caught:
            names.resolve("laptop", WALL + age)
        assert caught.value.claimants == tuple(sorted(str(signer.id) for signer in (A, B, C)))
        assert all(str(signer.id) in caught.value.message for signer in (A, B, C))
        assert "use the id" in caught.value.hint
    assert names.pins == {}
    assert names.name_of(A.id, WALL) == ""


def test_a_name_that_one_node_claims_is_pinned_by_its_first_use_and_stays() -> None:
    names = _names()
    names.on_entry(_claim(A, WALL), WALL)
    assert names.resolve("laptop", WALL) == A.id
    names.on_entry(_claim(B, 0), WALL)  # dated 1970
    assert names.resolve("laptop", WALL) == A.id
    assert (names.name_of(A.id, WALL), names.name_of(B.id, WALL)) == ("laptop", "")


def test_a_conflict_is_told_once_and_says_whether_the_name_means_a_node_here() -> None:
    names = _names()
    for signer in (A, B, A, B):
        names.on_entry(_claim(signer, WALL - 5), WALL)
    assert _told(names) == [NameConflict("laptop", A.id, B.id, False)]


def test_a_nodes_own_name_means_itself_whichever_node_claims_it() -> None:
    names = _names()
    names.claim("laptop", int(WALL * 1000), 0.0)
    names.on_entry(_claim(A, 0), WALL)
    names.on_entry(_claim(ME, WALL), WALL)
    assert names.resolve("laptop", WALL) == ME.id
    assert names.name_of(ME.id, WALL) == "laptop"
    assert names.pins == {}


def test_a_node_that_has_left_is_still_called_by_its_name_until_another_has_it() -> None:
    statuses = {A.id: Status.LEFT}
    names = _names(statuses=statuses)
    claim = _claim(A, WALL - 10)
    names.on_entry(claim, WALL)
    assert names.name_of(A.id, WALL) == "laptop"
    assert names.name_of(A.id, claim.expires + 1) == ""
    names.on_entry(_claim(B, WALL - 5), WALL)
    assert (names.name_of(A.id, WALL), names.name_of(B.id, WALL)) == ("", "laptop")


def test_a_name_that_was_used_here_never_means_another_node_in_silence() -> None:
    names = _names()
    names.on_entry(_claim(A, WALL - 10), WALL)
    assert names.resolve("laptop", WALL) == A.id
    assert PinsChanged() in names.take_effects()
    names.on_entry(_claim(B, WALL - 1000), WALL)  # says that it was earlier
    assert names.resolve("laptop", WALL) == A.id
    assert _told(names) == [NameConflict("laptop", A.id, B.id, True)]
    names.on_entry(_claim(A, 0, value=None), WALL)
    with pytest.raises(NameChanged) as caught:
        names.resolve("laptop", WALL)
    assert "meshnode forget laptop" in caught.value.hint
    assert names.forget("laptop")
    assert names.resolve("laptop", WALL) == B.id


def test_pins_outlive_the_process_and_need_no_claim_at_hand() -> None:
    names = _names(pins={"laptop": A.id})
    assert names.resolve("laptop", WALL) == A.id
    names.on_entry(_claim(B, WALL - 10), WALL)
    with pytest.raises(NameChanged):
        names.resolve("laptop", WALL)


def test_a_crashed_node_keeps_its_name_and_one_that_left_does_not() -> None:
    statuses: dict[NodeId, Status] = {}
    names = _names(statuses=statuses)
    names.on_entry(_claim(A, WALL - 10), WALL)
    names.on_entry(_claim(B, WALL - 5), WALL)
    statuses[A.id] = Status.GONE
    names.on_member(A.id, WALL)
    with pytest.raises(NameDisputed):
        names.resolve("laptop", WALL)
    statuses[A.id] = Status.LEFT
    assert names.resolve("laptop", WALL) == B.id
    other = _names()
    other.on_entry(_claim(A, WALL - 10), WALL)
    with pytest.raises(NotFound):
        other.resolve("laptop", WALL + 86_401)


def test_our_claim_is_renewed_and_an_earlier_runs_other_name_is_given_up() -> None:
    names = _names()
    names.claim("laptop", int(WALL * 1000), 0.0)
    names.tick(15_000.0)
    announced = [e for e in names.take_effects() if isinstance(e, Announce)]
    assert len(announced) == 2
    assert len({e.value for e in announced}) == 1, "the first date stays"
    names.on_entry(_claim(ME, WALL, name="old"), WALL)
    (effect,) = names.take_effects()
    assert isinstance(effect, Announce)
    assert (effect.name, effect.value) == ("old", None)


@pytest.mark.parametrize("text", ["", "-a", "a-", "UP", "a.b", "a b", "x" * 41, str(A.id), "käse", "a/b"])
def test_what_is_no_name_is_none(text: str) -> None:
    assert not is_label(text)


def test_text_that_may_be_a_name() -> None:
    assert label_of("Laptop.mesh") == label_of("laptop") == "laptop"
    assert label_of(f"{A.id}.mesh") is None


@pytest.mark.parametrize("value", [b"", b"junk", encode("x"), encode(-1), encode(2**60), encode(True), b"\x1b" * 40])
def test_what_is_no_claim_is_dropped_and_counted(value: bytes) -> None:
    metrics = Metrics()
    names = Names(ME.id, metrics, lambda peer: Status.ALIVE)
    names.on_entry(_claim(A, 0, value=value), WALL)
    names.on_entry(_claim(A, 0, name="Not A Name"), WALL)
    assert metrics.counters == {"names_drop_malformed": 2}


def test_a_crowd_of_claimants_costs_little_and_does_not_displace_what_was_there_first() -> None:
    metrics = Metrics()
    names = Names(ME.id, metrics, lambda peer: Status.ALIVE)
    names.on_entry(_claim(A, WALL - 100), WALL)
    crowd = [Identity(random.Random(i).randbytes(32)) for i in range(100)]
    for signer in crowd:
        names.on_entry(_claim(signer, WALL - 50), WALL)
    assert A.id in names._claims["laptop"]
    assert len(names._claims["laptop"]) == NAMES_MAX_RIVALS
    assert metrics.counters["names_full"] >= 60
    for i, signer in enumerate(crowd * 27):
        names.on_entry(_claim(signer, WALL - 50, name=f"n{i}"), WALL)
    assert names._count <= NAMES_MAX_CLAIMS


def test_claims_that_have_run_out_make_room_for_a_later_one() -> None:
    names = _names()
    for number in range(NAMES_MAX_RIVALS):
        names.on_entry(_claim(Identity(random.Random(number).randbytes(32)), WALL - 50), WALL)
    names.on_entry(_claim(A, WALL - 10), WALL)
    assert names.name_of(A.id, WALL) == "", "it is the latest of too many"
    later = WALL + 86_401
    names.on_entry(_claim(B, later - 10, issued=later), later)
    assert names.resolve("laptop", later) == B.id
    assert names.name_of(B.id, later) == "laptop"


def test_of_too_many_pins_the_one_that_was_not_used_for_longest_goes() -> None:
    names = _names(pins={f"n{number}": B.id for number in range(NAMES_MAX_PINS)})
    assert names.resolve("n0", WALL) == B.id
    names.on_entry(_claim(A, WALL - 10), WALL)
    names.resolve("laptop", WALL)
    assert len(names.pins) == NAMES_MAX_PINS
    assert "n1" not in names.pins
    assert names.pins["n0"] == B.id
