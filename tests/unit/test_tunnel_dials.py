"""Attempts to open tunnels: few to a host where no node has answered, whatever names it."""

from __future__ import annotations

from meshnode.base import limits
from meshnode.base.path import ViaTunnel
from meshnode.stack.address_credit import AddressCredit
from meshnode.stack.tunnel_dials import TunnelDials

VICTIM = "192.0.2.1"


def granted(dials: TunnelDials, tunnels: list[ViaTunnel], now: float) -> int:
    return sum(dials.take(tunnel, now) for tunnel in tunnels)


def test_a_host_is_dialled_few_times_a_minute_whatever_peers_and_ports_name_it() -> None:
    dials = TunnelDials()
    crowd = [ViaTunnel(f"id{n}", VICTIM, 1 + n % 7) for n in range(100)]
    assert granted(dials, crowd, 0.0) == limits.TUNNEL_DIALS_PER_HOST
    assert sum(granted(dials, crowd, float(second)) for second in range(1, 601)) == 20, "two a minute"


def test_an_ipv6_host_is_its_64() -> None:
    dials = TunnelDials()
    crowd = [ViaTunnel(f"id{n}", f"2001:db8::{n:x}", 443) for n in range(100)]
    assert granted(dials, crowd, 0.0) == limits.TUNNEL_DIALS_PER_HOST


def test_one_peer_names_few_hosts_and_all_together_not_many() -> None:
    dials = TunnelDials()
    assert granted(dials, [ViaTunnel("id", f"10.0.0.{n}", 443) for n in range(100)], 0.0) == 6
    ever_new = [ViaTunnel(f"id{n}", f"10.1.{n // 200}.{n % 200}", 443) for n in range(10_000)]
    assert granted(dials, ever_new, 0.0) == limits.TUNNEL_DIALS_BURST - 6
    assert granted(dials, ever_new, 10.0) == 10
    assert len(dials._hosts) < 100, "what is refused pushes out nothing"
    assert granted(dials, [ViaTunnel("other", "10.1.0.0", 443)] * 9, 11.0) <= 1


def test_a_tunnel_by_which_the_node_named_has_answered_is_dialled_whenever_it_is_needed() -> None:
    credit = AddressCredit()
    relay, beside = ViaTunnel("relay", VICTIM, 443), ViaTunnel("relay", VICTIM, 444)
    credit.answered(relay, 0.0)
    credit.answered(ViaTunnel("", VICTIM, 1), 0.0)  # a member's own WebSocket is no dial of ours
    assert granted(credit.tunnels, [relay] * 100, 0.0) == 100
    assert granted(credit.tunnels, [beside] * 100, 0.0) == limits.TUNNEL_DIALS_PER_HOST


def test_what_has_answered_is_remembered_within_a_bound() -> None:
    dials = TunnelDials()
    kept = ViaTunnel("relay", VICTIM, 443)
    dials.answered(kept)
    for n in range(2 * limits.MAX_PROVEN_TUNNELS):
        dials.answered(ViaTunnel(f"id{n}", "198.51.100.7", n))
    assert len(dials._proven) == limits.MAX_PROVEN_TUNNELS
    assert granted(dials, [kept] * 100, 0.0) == 100, "one network pushes out its own"
