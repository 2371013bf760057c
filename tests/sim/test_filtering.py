"""Whole nodes behind every kind of NAT: what ``status`` says of mapping and filtering is right, or unknown."""

from __future__ import annotations

import pytest

from meshnode.base.limits import FILTER_SETTLE_S
from meshnode.nat.filtering import Filtering
from meshnode.nat.mapping import Mapping
from meshnode.sim.link import ModelEngines
from meshnode.sim.nat import PRESETS, Dependence
from meshnode.sim.world import SimNode, Weather, World

KINDS = [kind for kind in PRESETS if PRESETS[kind].translates and not PRESETS[kind].blocked_udp]


@pytest.mark.parametrize("kind", KINDS)
def test_strangers_that_call_show_a_full_cone_and_nothing_else(kind: str) -> None:
    world = World(11, Weather(delay=0.02))
    engines = ModelEngines(world.entropy)
    nat = world.nat(PRESETS[kind], "198.51.100.1")
    seeds = [SimNode(world, f"192.0.{i}.1", engines, seed_role=True) for i in (2, 3)]
    here = SimNode(world, "10.0.0.2", engines, nat=nat)
    for seed in seeds:
        here.join(seed)
        here.connect(seed.id)
    world.run(FILTER_SETTLE_S + 30)
    view, told = here.mesh.nat, []
    for number in range(6):
        stranger = SimNode(world, f"203.0.{number}.9", engines)
        stranger.join(seeds[0])
        world.run(1.0)
        stranger.connect(here.id)
        world.run(10.0)
        told.append(view.filters.filtering(4))
    behaviour = PRESETS[kind]
    full = behaviour.filtering is Dependence.ENDPOINT_INDEPENDENT
    assert told[-1] is (Filtering.INDEPENDENT if full else Filtering.UNKNOWN), told
    assert view.filters.filtering(6) is Filtering.UNKNOWN
    # Linux gives a lone host one port: only two hosts with one port would be told apart (nat.py)
    assert view.mappings.behaviour(4, world.now) is (Mapping.DEPENDENT if kind == "symmetric" else Mapping.INDEPENDENT)
    here.move("10.0.0.2", nat=world.nat(PRESETS["symmetric"], "198.51.100.7"))
    world.run(30.0)
    assert view.filters.filtering(4) is Filtering.UNKNOWN, "learnt again behind the next NAT"
    assert view.mappings.behaviour(4, world.now) is Mapping.DEPENDENT


@pytest.mark.parametrize("kind", ["open", "firewall"])
def test_a_node_on_a_public_address_learns_whether_a_firewall_keeps_strangers_out(kind: str) -> None:
    world = World(12, Weather(delay=0.02))
    engines = ModelEngines(world.entropy)
    router = world.nat(PRESETS[kind], inside="198.51.100.0/24")
    seeds = [SimNode(world, f"192.0.{i}.1", engines, seed_role=True) for i in (2, 3)]
    here = SimNode(world, "198.51.100.2", engines, nat=router)
    for seed in seeds:
        here.join(seed)
        here.connect(seed.id)
    world.run(FILTER_SETTLE_S + 30)
    for number in range(4):
        stranger = SimNode(world, f"203.0.{number}.9", engines)
        stranger.join(seeds[0])
        world.run(1.0)
        stranger.connect(here.id)
        world.run(10.0)
    view = here.mesh.nat
    assert view.mappings.behaviour(4, world.now) is Mapping.NONE
    assert view.filters.filtering(4) is (Filtering.INDEPENDENT if kind == "open" else Filtering.UNKNOWN)
