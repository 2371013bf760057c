"""FairRate: a flood uses up the tokens of its own address and network, and not those of others."""

from __future__ import annotations

import pytest

from meshnode.base.address import Addr
from meshnode.base.fair_rate import KEPT, FairRate, Rate, source_network
from meshnode.base.path import Path, ViaRelay, ViaSocket, ViaTunnel

TOTAL, NETWORK, ADDRESS, LITTLE = Rate(20, 40), Rate(10, 20), Rate(1, 4), Rate(0.5, 2)
OPEN = TOTAL.burst * (1 - KEPT)  # what those may take that take much


def rate() -> FairRate:
    return FairRate(total=TOTAL, network=NETWORK, address=ADDRESS, little=LITTLE)


def granted(limited: FairRate, sources: list[Path], now: float = 0.0) -> int:
    return sum(limited.take(source, now) for source in sources)


def test_a_flood_from_one_address_leaves_its_network_tokens() -> None:
    limited = rate()
    assert granted(limited, [Addr("192.0.2.1", 1)] * 1_000) == ADDRESS.burst
    assert limited.take(Addr("192.0.2.1", 2), 0.0)


def test_a_flood_from_every_port_of_a_network_leaves_other_networks_tokens() -> None:
    limited = rate()
    crowd: list[Path] = [Addr(f"192.0.2.{n % 250}", n) for n in range(1_000)]
    assert granted(limited, crowd) == NETWORK.burst
    assert limited.take(Addr("198.51.100.1", 1), 0.0)


def test_all_together_have_no_more_than_the_total() -> None:
    crowd: list[Path] = [Addr(f"10.{n}.0.1", 1) for n in range(250)]
    assert granted(rate(), crowd * 4) == TOTAL.burst


def test_networks_that_take_all_they_may_leave_others_their_turn() -> None:
    limited = rate()
    flood: list[Path] = [Addr(f"10.{n}.0.{port}", port) for port in range(1, 100) for n in range(4)]
    assert granted(limited, flood) == pytest.approx(OPEN, abs=4 * LITTLE.burst)
    newcomer = Addr("192.0.2.1", 1)
    for second in range(1, 30):
        granted(limited, flood, float(second))
        assert limited.take(newcomer, float(second)) == (second % 2 == 1 or second == 2), "one in 2 s is its little"


def test_all_networks_of_an_ipv6_allocation_take_little_together() -> None:
    limited = rate()
    rotation: list[Path] = [Addr(f"2001:db8:{n:x}::1", 1) for n in range(500)]
    granted(limited, rotation)
    newcomer = Addr("2001:db9::1", 1)
    for second in range(1, 20):
        assert granted(limited, rotation, float(second)) <= TOTAL.each_s
        assert limited.take(newcomer, float(second)) == (second % 2 == 1 or second == 2)


def test_while_there_is_nothing_else_to_do_the_total_is_no_limit_but_that_of_a_network_is() -> None:
    limited = rate()
    crowd: list[Path] = [Addr(f"10.{n}.0.1", 1) for n in range(250)]
    limited.spare = lambda now: now < 1
    assert granted(limited, crowd) == len(crowd)
    assert granted(limited, [Addr("10.1.0.9", port) for port in range(1_000)]) == NETWORK.burst - 1
    assert all(limited.has(source, 0.0) for source in (Addr("10.250.0.1", 1), None))
    assert granted(limited, [Addr("10.250.0.1", port) for port in range(100)], 1.0) <= LITTLE.burst + TOTAL.each_s


def test_tokens_come_back_at_the_rate_of_the_address() -> None:
    limited = rate()
    source = Addr("192.0.2.1", 1)
    granted(limited, [source] * 10)
    assert granted(limited, [source] * 10, 2.0) == 2 * ADDRESS.each_s


def test_has_takes_nothing_and_says_what_take_would() -> None:
    limited = rate()
    source = Addr("192.0.2.1", 1)
    assert all(limited.has(source, 0.0) for _ in range(100))
    granted(limited, [source] * 10)
    assert not limited.has(source, 0.0)
    assert limited.has(source, 1.0)


def test_a_refusal_at_one_level_costs_nothing_at_another() -> None:
    limited = rate()
    granted(limited, [Addr("192.0.2.1", 1)] * 1_000)
    others: list[Path] = [Addr("192.0.2.2", port) for port in range(1_000)]
    assert granted(limited, others) == NETWORK.burst - ADDRESS.burst


def test_a_relay_and_a_tunnel_are_networks_and_no_single_address() -> None:
    for source in (ViaRelay("abc"), ViaTunnel("abc", "relay.example", 443)):
        assert granted(rate(), [source] * 1_000) == NETWORK.burst


def test_websockets_that_one_host_opens_are_of_one_network_whatever_their_members() -> None:
    limited = rate()
    assert granted(limited, [ViaTunnel("", "192.0.2.1", n) for n in range(1_000)]) == NETWORK.burst
    assert not limited.take(Addr("192.0.2.9", 1), 0.0)


def test_an_event_without_a_source_counts_for_all() -> None:
    limited = rate()
    assert sum(limited.take(None, 0.0) for _ in range(1_000)) == OPEN
    assert granted(limited, [Addr("192.0.2.1", port) for port in range(100)]) == LITTLE.burst


def test_an_extra_socket_hears_the_same_network() -> None:
    assert source_network(ViaSocket(Addr("192.0.2.1", 1), 3)) == source_network(Addr("192.0.2.200", 9))
