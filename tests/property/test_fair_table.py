"""A full table takes from the group with most: no flood of one network takes the places of another."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.fair_table import FairTable, network_of

STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "discard", "touch"]), st.integers(0, 5), st.integers(0, 30)), max_size=200
)


@given(bound=st.integers(1, 12), steps=STEPS)
def test_the_oldest_of_a_largest_group_goes_and_nothing_else(bound: int, steps: list[tuple[str, int, int]]) -> None:
    table: FairTable[int] = FairTable(bound)
    model: dict[int, list[int]] = {}  # group -> its keys, oldest first
    group_of: dict[int, int] = {}
    for step, group, key in steps:
        if step == "add" and key not in group_of:
            gone = table.add(key, group)
            model.setdefault(group, []).append(key)
            group_of[key] = group
            sizes = Counter(group_of.values())
            if len(group_of) > bound:
                assert gone is not None
                assert sizes[group_of[gone]] == max(sizes.values())
                assert model[group_of[gone]][0] == gone
                model[group_of.pop(gone)].remove(gone)
            else:
                assert gone is None
        elif step == "discard":
            table.discard(key)
            if key in group_of:
                model[group_of.pop(key)].remove(key)
        elif step == "touch" and key in group_of:
            table.touch(key)
            model[group_of[key]].remove(key)
            model[group_of[key]].append(key)
        assert len(table) == len(group_of) <= bound
        assert all(key in table for key in group_of)


def test_a_flood_from_one_network_leaves_the_few_of_others_alone() -> None:
    table: FairTable[object] = FairTable(128)
    few = [(network, number) for network in "abc" for number in range(5)]
    for entry in few:
        table.add(entry, entry[0])
    for number in range(10_000):
        assert table.add(number, "flood") not in few
    assert all(entry in table for entry in few)


def test_newcomers_of_another_network_enter_a_table_that_a_flood_has_filled() -> None:
    table: FairTable[object] = FairTable(8)
    for number in range(8):
        table.add(number, "flood")
    assert table.add("newcomer", "elsewhere") == 0
    assert "newcomer" in table


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.254", True),
        ("192.0.2.1", "192.0.3.1", False),
        ("::ffff:192.0.2.1", "192.0.2.9", True),
        ("2001:db8:1::1", "2001:db8:1:ffff::2", True),
        ("2001:db8:1::1", "2001:db8:2::1", False),
        ("fe80::1%eth0", "fe80::2", True),
    ],
)
def test_a_network_is_what_one_party_is_likely_to_own(one: str, other: str, same: bool) -> None:
    assert (network_of(one) == network_of(other)) is same
