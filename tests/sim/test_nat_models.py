"""The simulated NATs do what RFC 4787 says of their kind."""

from __future__ import annotations

import random
from itertools import product

import pytest

from meshnode.base.address import Addr
from meshnode.quic.engines import pick_engine
from meshnode.sim.nat import (
    FIREWALL,
    FULL_CONE,
    MAX_PEERS_PER_MAPPING,
    OPEN,
    PORT_RESTRICTED,
    PRESETS,
    SYMMETRIC,
    Behaviour,
    Dependence,
    Nat,
    Ports,
)
from meshnode.sim.world import SimNode, Weather, World
from tests.sim.nat_probes import HAIRPIN, KINDS, OVERLOADED, PUNCH, SCRIPTS, TIMEOUTS, play
from tests.sim.sim_bench import SimBench

PEER = Addr("198.51.100.7", 7001)
INSIDE = Addr("10.0.0.2", 5000)


def _nat(behaviour: Behaviour, *outside: str) -> Nat:
    return Nat(behaviour, outside or ("198.51.100.1",), rng=random.Random(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("script", [*SCRIPTS, *TIMEOUTS])
def test_a_preset_lets_through_what_its_kind_lets_through(script: str, kind: str) -> None:
    steps, expected = {**SCRIPTS, **TIMEOUTS}[script]
    assert play(steps, SimBench(kind)).text == expected[KINDS.index(kind)]


@pytest.mark.parametrize("kind", KINDS)
def test_hairpinning_obeys_the_filter(kind: str) -> None:
    steps, expected = HAIRPIN
    assert play(steps, SimBench(kind, hairpin=True)).text == expected[KINDS.index(kind)]


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_symmetric_nat_shows_each_destination_another_port(kind: str) -> None:
    outcome = play("a>s1 a>s2 a>t", SimBench(kind))
    assert len({number for _, number in outcome.seen}) == (3 if kind == "symmetric" else 1)
    assert (outcome.kept == ()) is (kind == "symmetric")


@pytest.mark.parametrize(("left", "right"), list(product(KINDS, KINDS)))
def test_a_hole_can_be_punched_unless_a_symmetric_nat_meets_one_that_looks_at_ports(left: str, right: str) -> None:
    outcome = play(PUNCH, SimBench(left, right))
    hopeless = "symmetric" in (left, right) and {left, right} <= {"symmetric", "port_restricted"}
    assert all(outcome.delivered[-2:]) is not hopeless, outcome.text


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_nat_in_front_changes_nothing_for_an_endpoint_independent_one(kind: str) -> None:
    for script in ("allowed answers", "two hosts with one port", "an early knock spoils nothing"):
        steps, expected = SCRIPTS[script]
        assert play(steps, SimBench(kind, carrier="full_cone")).text == expected[KINDS.index(kind)]


def test_the_stricter_of_two_nats_decides() -> None:
    steps, expected = SCRIPTS["allowed answers"]
    outcome = play(steps, SimBench("full_cone", carrier="port_restricted"))
    assert outcome.text == expected[KINDS.index("port_restricted")]


def test_two_homes_of_one_carrier_meet_only_where_the_carrier_hairpins() -> None:
    script = "a>s1 x>s1 a>x@s1 x>a@s1 a>x@s1"
    assert play(script, SimBench("port_restricted", "port_restricted", carrier="full_cone")).text == "++---"
    assert play(script, SimBench("port_restricted", "port_restricted", carrier="full_cone", hairpin=True)).text == (
        "++-++"
    )


def test_linux_shows_one_port_until_two_hosts_meet_at_one_peer() -> None:
    outcome = play(OVERLOADED[1], SimBench("linux"))
    assert outcome.kept == ("a@s1", "b@s2"), "both hosts have the same outside address, each towards another peer"
    assert dict(outcome.seen) == {"a@s1": 0, "b@s2": 0, "b@s1": 1, "b@t": 1, "a@s2": 2, "a@t": 2}
    for script, (steps, expected) in SCRIPTS.items():
        assert play(steps, SimBench("linux")).text == expected[KINDS.index("port_restricted")], script


def test_address_dependent_mapping_shows_each_host_another_port() -> None:
    nat = _nat(Behaviour(mapping=Dependence.ADDRESS_DEPENDENT, ports=Ports.SEQUENTIAL))
    seen = [nat.outbound(INSIDE, Addr(host, port), 0.0) for host in ("1.1.1.1", "2.2.2.2") for port in (1, 2)]
    assert seen[0] == seen[1] != seen[2] == seen[3]
    assert [addr.port for addr in seen if addr is not None] == [1024, 1024, 1025, 1025]


def test_an_open_router_hides_nothing_and_a_firewall_only_keeps_strangers_out() -> None:
    for behaviour, open_to in ((OPEN, INSIDE), (FIREWALL, None)):
        nat = _nat(behaviour)
        assert nat.inbound(PEER, INSIDE, 0.0) == open_to
        assert nat.outbound(INSIDE, PEER, 0.0) == INSIDE
        assert nat.inbound(PEER, INSIDE, 0.0) == INSIDE


def test_inside_hosts_keep_one_of_several_outside_addresses_each() -> None:
    nat = _nat(SYMMETRIC, "198.51.100.1", "198.51.100.2")
    seen = [
        {found.host for port in range(1, 9) if (found := nat.outbound(Addr(host, 5000), Addr("1.1.1.1", port), 0.0))}
        for host in ("10.0.0.2", "10.0.0.3")
    ]
    assert seen == [{"198.51.100.1"}, {"198.51.100.2"}]


def test_ports_run_out_and_come_back_when_mappings_time_out() -> None:
    nat = _nat(Behaviour(mapping=Dependence.ADDRESS_AND_PORT_DEPENDENT, ports=Ports.SEQUENTIAL, timeout=60))
    for number in range(1024, 65536):
        assert nat.outbound(INSIDE, Addr("1.1.1.1", number), 0.0) is not None
    assert nat.outbound(INSIDE, Addr("2.2.2.2", 1), 1.0) is None
    assert nat.drops == {"no_free_port": 1}
    assert nat.outbound(INSIDE, Addr("2.2.2.2", 1), 61.0) is not None
    assert len(nat) == 1


def test_a_scan_from_inside_does_not_grow_one_mapping_without_bound() -> None:
    nat = _nat(PORT_RESTRICTED)
    for number in range(MAX_PEERS_PER_MAPPING + 1):
        nat.outbound(INSIDE, Addr("1.1.1.1", 1 + number), 0.0)
    outside = Addr("198.51.100.1", INSIDE.port)
    assert nat.inbound(Addr("1.1.1.1", 1), outside, 0.0) is None, "the oldest gave way"
    assert nat.inbound(Addr("1.1.1.1", 2), outside, 0.0) == INSIDE


def test_presets_have_names_and_senseless_ones_are_refused() -> None:
    assert set(PRESETS) >= {"open", *KINDS, "blocked_udp"}
    for bad in (lambda: Nat(SYMMETRIC, rng=random.Random(1)), lambda: _nat(Behaviour(ports=Ports.OVERLOADING))):
        with pytest.raises(ValueError):
            bad()
    assert _nat(PRESETS["blocked_udp"]).outbound(INSIDE, PEER, 0.0) is None


def _nodes(
    world: World, left: Behaviour, right: Behaviour, engine: str = "auto"
) -> tuple[SimNode, SimNode, SimNode, Nat, Nat]:
    engines = pick_engine(engine)
    one, two = world.nat(left, "198.51.100.1"), world.nat(right, "198.51.100.2")
    seed = SimNode(world, "198.51.100.9", engines, seed_role=True)
    a, b = (SimNode(world, "10.0.0.2", engines, nat=nat) for nat in (one, two))
    for node in (a, b):
        node.join(seed)
    world.run(3.0)
    return seed, a, b, one, two


def _echo(world: World, here: SimNode, there: SimNode) -> bool:
    stream, inbox = here.open(here.connect(there.id))
    stream.write(b"hello")
    return world.run(5.0, lambda: bytes(inbox.data) == b"hello")


def test_whole_nodes_with_the_same_private_address_reach_the_seed_through_their_nats() -> None:
    world = World(5, Weather(delay=0.02))
    seed, a, b, *_ = _nodes(world, PORT_RESTRICTED, SYMMETRIC)
    assert a.addr == b.addr
    assert _echo(world, a, seed)
    assert _echo(world, b, seed)


def test_a_stream_goes_on_when_its_node_moves_behind_another_nat_and_when_the_nat_forgets() -> None:
    world = World(6, Weather(delay=0.02))
    seed, a, _, _, two = _nodes(world, PORT_RESTRICTED, FULL_CONE)
    stream, inbox = a.open(a.connect(seed.id))
    sent = b""

    def says(text: bytes) -> bool:
        nonlocal sent
        sent += text
        stream.write(text)
        return world.run(5.0, lambda: bytes(inbox.data) == sent)

    assert says(b"at home, ")
    a.move("10.0.0.77", nat=two)
    assert says(b"elsewhere, ")
    two.flush()
    assert says(b"after a restart, ")
    a.move("198.51.100.50")
    assert says(b"on no NAT at all")


def test_runs_with_nats_repeat_for_a_seed() -> None:
    digests = []
    for _ in range(2):
        world = World(7, Weather(delay=0.03, jitter=0.01, loss=0.02))
        seed, a, _, _, two = _nodes(world, SYMMETRIC, SYMMETRIC, "aioquic")  # qh3 draws randomness of its own
        a.connect(seed.id)
        a.move("10.0.0.9", nat=two)
        world.run(5.0)
        digests.append((world.digest, world.sent))
    assert digests[0] == digests[1]
