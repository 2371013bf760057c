"""A full table takes from the group with most: no flood of one network takes the places of another."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.fair_table import FairTable, network_of, source_groups, source_shares

STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "discard", "touch"]), st.integers(0, 5), st.integers(0, 30)), max_size=200
)


@given(bound=st.integers(1, 12), steps=STEPS, newest=st.booleans())
def test_the_oldest_or_newest_of_a_largest_group_goes_and_nothing_else(
    bound: int, steps: list[tuple[str, int, int]], newest: bool
) -> None:
    table: FairTable[int] = FairTable(bound, newest_goes=newest)
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
                assert model[group_of[gone]][-1 if newest else 0] == gone
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


@given(
    bound=st.integers(1, 12),
    steps=st.lists(
        st.tuples(st.booleans(), st.integers(0, 30), st.integers(0, 2), st.integers(0, 2), st.integers(0, 1)),
        max_size=150,
    ),
)
def test_groups_within_groups_share_what_their_group_has(
    bound: int, steps: list[tuple[bool, int, int, int, int]]
) -> None:
    table: FairTable[int] = FairTable(bound)
    groups: dict[int, tuple[int, int, int]] = {}
    for adds, key, *path in steps:
        if not adds:
            table.discard(key)
            groups.pop(key, None)
        elif key not in groups:
            groups[key] = (path[0], path[1], path[2])
            loses = table.would_lose(*groups[key])
            gone = table.add(key, *groups[key])
            assert (gone is not None) is (len(groups) > bound)
            if gone is not None:
                assert loses is (groups[gone] == groups[key])
                for depth in range(3):
                    siblings = Counter(g[: depth + 1] for g in groups.values() if g[:depth] == groups[gone][:depth])
                    assert siblings[groups[gone][: depth + 1]] == max(siblings.values())
                same = [each for each in groups if groups[each] == groups[gone]]
                assert same[0] == gone, "the oldest of its innermost group"
                del groups[gone]
        assert len(table) == len(groups)
        assert all(each in table for each in groups)


def test_an_empty_table_has_nothing_to_evict() -> None:
    table: FairTable[int] = FairTable(1)
    with pytest.raises(LookupError):
        table.evict()


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("192.0.2.1", "192.0.2.1", 2),
        ("192.0.2.1", "192.0.2.254", 1),
        ("192.0.2.1", "::ffff:192.0.2.1", 2),
        ("2001:db8:1:1::1", "2001:db8:1:1::2", 2),
        ("2001:db8:1:1::1", "2001:db8:1:2::1", 1),
        ("2001:db8:1:1::1", "2001:db8:2:1::1", 0),
        ("no address", "no address", 2),
        ("no address", "another", 0),
    ],
)
def test_a_source_belongs_to_its_network_and_to_a_smaller_part_of_it(one: str, other: str, shared: int) -> None:
    assert sum(a == b for a, b in zip(source_groups(one), source_groups(other), strict=True)) == shared


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("192.0.2.1", "192.0.3.1", 0),
        ("192.0.2.1", "192.0.2.2", 2),
        ("2001:db8:1:1::1", "2001:db8:2:1::1", 1),
        ("2001:db8:1:1::1", "2001:db9:1:1::1", 0),
        ("no address", "another", 0),
    ],
)
def test_the_networks_of_an_ipv6_allocation_are_of_one_share(one: str, other: str, shared: int) -> None:
    assert sum(a == b for a, b in zip(source_shares(one), source_shares(other), strict=True)) == shared


def test_all_networks_of_an_ipv6_allocation_push_out_nothing_of_others() -> None:
    table: FairTable[str] = FairTable(128)
    others = [f"2001:db8:{n}::1" for n in range(20)] + [f"192.0.{n}.1" for n in range(20)]
    for host in others:
        table.add(host, *source_shares(host))
    flood = [f"2001:470:{n:x}:{host}::1" for n in range(1_000) for host in range(3)]
    for host in flood:
        assert table.add(host, *source_shares(host)) not in others
    newcomers = [f"2a00:{n}::1" for n in range(1, 20)]
    for host in newcomers:
        assert table.add(host, *source_shares(host)) in flood
    assert all(host in table for host in (*others, *newcomers))


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
