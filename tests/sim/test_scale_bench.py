"""The parts of ``./dev bench scale``, in short forms that the tests have time for."""

from __future__ import annotations

import pytest

from bench import dht_store, members, rest, scale, seed_lookups
from meshnode.base.limits import GOSSIP_LISTED
from meshnode.gossip.dissemination import listing
from meshnode.identity import replay


def test_each_part_says_what_it_leaves_out_and_has_a_name_of_its_own() -> None:
    assert len({part.name for part in scale.PARTS}) == len(scale.PARTS)
    assert all(part.leaves_out for part in scale.PARTS)


def test_a_mesh_whose_members_announce_themselves_is_connected_and_knows_its_seeds() -> None:
    found = members.measure(40, rest=5.0, settle=12.0, count=1)
    assert found["connected"]
    assert not found["seeds_unknown"]
    assert not found["missing"]
    assert found["bytes"] > 0.0


def test_what_a_leaf_sends_and_is_sent_at_rest_is_few_bytes() -> None:
    found = rest.run_leaf(4, settle=120.0, window=60.0)
    assert 1 < found["sent_a_second"] < 10
    assert 1 < found["received_a_second"] < 10


def test_what_a_node_keeps_and_sends_does_not_grow_with_the_mesh() -> None:
    small, large = (
        members.measure(nodes, rest=10.0, settle=12.0, count=1, places=10, every=0.1) for nodes in (40, 120)
    )
    assert listing.GOSSIP_LISTED == GOSSIP_LISTED, "the limit is that of nodes again"
    assert not large["seeds_unknown"]
    assert not large["missing"]
    assert large["listed"] < 60, "the rest is known to neighbours"
    assert large["stored_max"] < 1.5 * small["stored_max"]
    assert large["messages"] < 1.3 * small["messages"]
    assert large["links_mean"] < 1.2 * small["links_mean"]


def test_of_a_storm_of_joins_about_as_many_are_listed_as_there_are_places() -> None:
    found = members.measure(150, rest=1.0, settle=8.0, count=1, places=24, every=0.02)
    assert 20 <= found["listed"] <= 32
    assert not found["seeds_unknown"]


def test_a_full_store_of_a_seed_takes_records_and_refuses_a_flood() -> None:
    found = dht_store.measure(2_000)
    assert found["refused"] > 4_000, "the measured flood was refused"
    assert 0 < found["rss_MB"] < 20


def test_a_seed_hears_every_lookup_when_more_come_than_its_guard_remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MAX_REPLAY_ENTRIES", 15_000)
    found = seed_lookups.measure_here(20_000)
    assert found["heard"] == 1.0, found["drops"]
    assert found["answered"] >= 1.0
