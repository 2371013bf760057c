"""Providers of services: the first use of a name alone is a promise, or an error that says what to write."""

from __future__ import annotations

from itertools import permutations

import pytest

from meshnode.base.limits import NAMES_MAX_PINS
from meshnode.base.metrics import Metrics
from meshnode.directory.names import PinsChanged
from meshnode.directory.providers import MAX_NAMED, ProviderConflict, Providers
from meshnode.errors import NameChanged, NameDisputed
from meshnode.identity.node_id import NodeId

A, B, C = (NodeId(bytes(31) + bytes([n])) for n in (1, 2, 3))


def _providers(**pins: NodeId) -> Providers:
    providers = Providers(Metrics())
    providers.restore(pins)
    return providers


@pytest.mark.parametrize("offered", list(permutations([A, B, C])))
def test_a_service_that_several_offer_means_none_of_them_and_the_error_says_what_to_write(
    offered: tuple[NodeId, ...],
) -> None:
    providers = _providers()
    with pytest.raises(NameDisputed) as caught:
        providers.choose("db", offered)
    assert caught.value.claimants == tuple(sorted(map(str, offered)))
    assert all(str(node) in caught.value.message for node in offered)
    assert f"--from {min(map(str, offered))}" in caught.value.hint
    assert providers.pins == {}


def test_a_crowd_of_providers_makes_no_endless_error() -> None:
    crowd = [NodeId(n.to_bytes(32, "big")) for n in range(1, 2_000)]
    with pytest.raises(NameDisputed) as caught:
        _providers().choose("db", crowd)
    assert len(caught.value.message) < 80 * MAX_NAMED
    assert f"and {len(crowd) - MAX_NAMED} more" in caught.value.message


def test_the_only_one_that_offers_a_service_is_pinned_by_its_use_and_a_rival_changes_nothing() -> None:
    providers = _providers()
    assert providers.choose("db", [A]) == A
    assert providers.pins == {}, "looking is no use"
    providers.pin("db", A)
    assert providers.take_effects() == [PinsChanged()]
    assert providers.choose("db", [B, A]) == A
    assert providers.choose("db", []) is None
    for _ in range(2):
        providers.on_offer("db", B)
        providers.on_offer("db", A)
    assert providers.take_effects() == [ProviderConflict("db", A, B)], "told once"


def test_another_node_in_place_of_the_pinned_one_is_an_error_until_it_is_forgotten() -> None:
    providers = _providers(db=A)
    with pytest.raises(NameChanged) as caught:
        providers.choose("db", [B, C])
    assert all(str(node) in caught.value.message for node in (A, B, C))
    assert "meshnode forget db" in caught.value.hint
    assert providers.forget("db")
    assert not providers.forget("db")
    assert providers.take_effects() == [PinsChanged()]
    assert providers.choose("db", [B]) == B


def test_of_too_many_pins_the_one_used_longest_ago_goes() -> None:
    providers = _providers(**{f"s{n}": A for n in range(NAMES_MAX_PINS)})
    providers.pin("s0", A)
    providers.pin("new", B)
    assert len(providers.pins) == NAMES_MAX_PINS
    assert "s1" not in providers.pins
    assert providers.pins["s0"] == A
