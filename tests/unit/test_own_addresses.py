"""Which addresses of a host its record names, and which changes are moves: tables of hosts."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import MAX_ENDPOINTS
from meshnode.identity.record import Endpoint, EndpointKind
from meshnode.nat.local_networks import LocalNetworks
from meshnode.nat.own_addresses import HostAddress, HostView, Link, WayOut, host_view, named
from meshnode.runtime import netlink

LOOPBACK = [HostAddress("127.0.0.1", 8, Link(1, "lo")), HostAddress("::1", 128, Link(1, "lo"))]
ETHERNET = Link(200, "eth0")
UPLINK = [HostAddress("192.168.1.5", 24, ETHERNET), HostAddress("2001:db8::5", 64, ETHERNET)]
ROUTES = (WayOut(200, "192.168.1.5", "192.168.1.1"), WayOut(200, "2001:db8::5", "fe80::1"))


def bridges(count: int, *, kind: str = "bridge", has_carrier: bool = True) -> list[HostAddress]:
    links = [Link(2 + n, f"br-{n}", kind, has_carrier) for n in range(count)]
    return [HostAddress(f"172.{17 + n // 200}.{n % 200}.1", 24, link) for n, link in enumerate(links)]


def view(*addresses: HostAddress, routes: tuple[WayOut, ...] = ROUTES) -> HostView:
    return host_view([*LOOPBACK, *addresses], routes)


def hosts(*addresses: HostAddress, routes: tuple[WayOut, ...] = ROUTES) -> list[str]:
    return view(*addresses, routes=routes).hosts(ipv6=True)


@pytest.mark.parametrize("count", [1, 16, 64])
@pytest.mark.parametrize("routes", [ROUTES, ()], ids=["default route", "no route out"])
def test_an_uplink_behind_any_number_of_bridges_comes_first(count: int, routes: tuple[WayOut, ...]) -> None:
    found = hosts(*bridges(count), *UPLINK, routes=routes)
    assert found[:2] == ["192.168.1.5", "2001:db8::5"]
    assert len(found) == count + 2


def test_bridges_without_a_member_that_is_up_are_left_out() -> None:
    assert hosts(*bridges(64, has_carrier=False), *UPLINK) == ["192.168.1.5", "2001:db8::5"]


def test_a_bridge_that_has_the_default_route_is_the_uplink() -> None:
    home = HostAddress("192.168.1.9", 24, Link(7, "br0", "bridge"))
    assert hosts(*bridges(20), home, routes=(WayOut(7, "192.168.1.9"),))[0] == "192.168.1.9"


def test_the_only_interface_of_a_container_is_named_though_it_is_virtual() -> None:
    inside = HostAddress("172.17.0.4", 16, Link(5, "eth0", "veth"))
    assert hosts(inside, routes=()) == ["172.17.0.4"]


def test_hardware_comes_before_virtual_interfaces_bridges_and_tunnels() -> None:
    vpn = HostAddress("10.8.0.6", 24, Link(2, "tun0", "tun"))
    bridge = HostAddress("10.1.0.1", 24, Link(3, "br0", "bridge"))
    veth = HostAddress("10.2.0.1", 24, Link(4, "veth0", "veth"))
    wifi = HostAddress("10.3.0.1", 24, Link(5, "wlan0"))
    assert hosts(vpn, bridge, veth, wifi, routes=()) == ["10.3.0.1", "10.2.0.1", "10.1.0.1", "10.8.0.6"]


def test_a_vpn_with_the_default_route_comes_first_and_hides_nothing() -> None:
    vpn = HostAddress("10.8.0.6", 24, Link(9, "tun0", "wireguard"))
    assert hosts(*UPLINK, vpn, routes=(WayOut(9, "10.8.0.6"),)) == ["10.8.0.6", "192.168.1.5", "2001:db8::5"]


def test_ranges_that_peers_have_too_come_after_others_of_their_kind() -> None:
    common = HostAddress("192.168.122.1", 24, Link(2, "net0", "bridge"))
    rare = HostAddress("10.77.3.1", 24, Link(3, "net1", "bridge"))
    assert hosts(common, rare, routes=()) == ["10.77.3.1", "192.168.122.1"]


def test_of_many_privacy_addresses_the_lasting_one_is_first_and_the_others_last() -> None:
    passing = [HostAddress(f"2001:db8::{n:x}", 64, ETHERNET, is_passing=True) for n in range(0x100, 0x114)]
    found = hosts(*passing, *UPLINK, *bridges(3), routes=())
    assert found[:2] == ["192.168.1.5", "2001:db8::5"]
    assert all(host.startswith("172.") for host in found[2:5]), "one of each network before a second of any"
    assert set(found[5:]) == {address.host for address in passing}


def test_a_cable_that_is_out_comes_after_one_that_is_in() -> None:
    wifi = HostAddress("192.168.1.6", 24, Link(3, "wlan0"))
    assert hosts(HostAddress("192.168.1.5", 24, Link(2, "eth0", has_carrier=False)), wifi, routes=())[0] == wifi.host


def test_without_another_address_loopback_is_named_and_without_ipv6_no_ipv6_is() -> None:
    assert view(routes=()).hosts(ipv6=True) == ["127.0.0.1"]
    assert view(*UPLINK).hosts(ipv6=False) == ["192.168.1.5"]


def test_networks_are_ipv4_ipv6_loopback_and_link_local_with_its_scope() -> None:
    own = HostAddress("fe80::5%eth0", 64, ETHERNET)
    assert [host for host, _ in view(own, *UPLINK).networks()] == [
        "192.168.1.5",
        "2001:db8::5",
        "127.0.0.1",
        "::1",
        "fe80::5%eth0",
    ]
    assert "fe80::5%eth0" not in hosts(own, *UPLINK)


def test_containers_that_come_and_go_change_nothing() -> None:
    before = view(*UPLINK)
    cable = Link(7, "veth7", "veth", is_port=True)
    started = view(*UPLINK, HostAddress("fe80::7%veth7", 64, cable), *bridges(2, has_carrier=False))
    assert (started.place(), started.hosts(ipv6=True), started.networks()) == (
        before.place(),
        before.hosts(ipv6=True),
        before.networks(),
    )


def test_link_local_addresses_count_where_a_host_has_no_other() -> None:
    only = HostAddress("fe80::7%eth0", 64, Link(7, "eth0", "veth"))
    assert ("fe80::7%eth0", 64) in view(only, routes=()).networks()


def test_a_bridge_in_use_is_published_and_no_move() -> None:
    before, after = view(*UPLINK), view(*UPLINK, *bridges(1))
    assert after.place() == before.place()
    assert after.hosts(ipv6=True) == [*before.hosts(ipv6=True), "172.17.0.1"]


@pytest.mark.parametrize(
    "after",
    [
        view(HostAddress("192.168.1.6", 24, ETHERNET), UPLINK[1]),
        view(UPLINK[0], HostAddress("2001:db8::5", 64, ETHERNET, is_passing=True)),
        view(*UPLINK, routes=ROUTES[1:]),
        view(*UPLINK, routes=(WayOut(200, "192.168.1.5", "192.168.1.254"), ROUTES[1])),
        view(*(HostAddress(a.host, a.prefix, Link(200, "eth0", has_carrier=False)) for a in UPLINK)),
        view(*(HostAddress(a.host, a.prefix, Link(201, "eth0")) for a in UPLINK)),
    ],
    ids=["address", "deprecated", "no route", "router", "cable out", "interface made again"],
)
def test_a_move_is_an_address_a_way_out_a_carrier_or_another_interface(after: HostView) -> None:
    assert after.place() != view(*UPLINK).place()


@pytest.mark.parametrize("mapped", [0, 1, 20])
@pytest.mark.parametrize("own", [1, 16, 64])
def test_what_others_saw_is_named_whatever_else_there_is(mapped: int, own: int) -> None:
    first = int(ipaddress.ip_address("10.0.0.1"))
    ours = [Endpoint(Addr(str(ipaddress.ip_address(first + n)), 1)) for n in range(own)]
    given = [Endpoint(Addr("198.51.100.1", n), EndpointKind.MAPPED) for n in range(1, mapped + 1)]
    seen = (Addr("203.0.113.1", 7), Addr("2001:db8::7", 7))
    record = named((*ours, *given), seen)
    assert tuple(e.addr for e in record if e.kind is EndpointKind.REFLEXIVE) == seen
    assert len(record) == min(MAX_ENDPOINTS, mapped + own + 2)
    kinds = [e.kind for e in record]
    assert kinds == sorted(kinds, key=[EndpointKind.MAPPED, EndpointKind.REFLEXIVE, EndpointKind.HOST].index)
    assert mapped > 13 or ours[0] in record


def test_an_address_of_our_own_is_not_named_twice() -> None:
    own = Endpoint(Addr("203.0.113.1", 7))
    assert named((own,), (own.addr,)) == (own,)


def test_a_link_without_any_other_address_is_named_by_its_link_local_one() -> None:
    cable = HostAddress("fe80::5%eth0", 64, ETHERNET)
    assert hosts(cable, routes=()) == ["fe80::5"], "without a scope, which is this host's alone"
    bridge = HostAddress("172.17.0.1", 16, Link(2, "docker0", "bridge"))
    assert hosts(bridge, cable, routes=()) == ["fe80::5", "172.17.0.1"], "a bridge leads no peer here"
    assert hosts(cable, *UPLINK) == ["192.168.1.5", "2001:db8::5"]
    wifi = HostAddress("192.168.7.2", 24, Link(3, "wlan0"))
    assert hosts(wifi, cable, routes=()) == ["192.168.7.2", "fe80::5"]
    assert view(cable, routes=()).hosts(ipv6=False) == ["127.0.0.1"]


def test_a_link_local_address_of_a_record_is_tried_on_each_link_that_has_such() -> None:
    links = [(f"fe80::{n}%eth{n}", 64) for n in range(1, 9)]
    here = LocalNetworks((("10.0.0.2", 24), *links), frozenset([Addr("fe80::1", 4242)]))
    found = here.reachable(Addr("fe80::99", 7))
    assert found == [Addr(f"fe80::99%eth{n}", 7) for n in (1, 2, 3, 4)]
    assert here.reachable(Addr("fe80::1", 4242)) == [], "its own"
    assert here.reachable(Addr("fe80::99%eth7", 7)) == [Addr("fe80::99%eth7", 7)], "heard there"
    assert here.reachable(Addr("10.0.0.9", 7)) == [Addr("10.0.0.9", 7)]
    assert here.reachable(Addr("127.0.0.1", 7)) == []
    assert LocalNetworks((("10.0.0.2", 24),)).reachable(Addr("fe80::99", 7)) == []


@pytest.mark.parametrize(
    ("flags", "is_there"),
    [(0x80, True), (0xC0, False), (0xC4, True), (0xC8, False), (0xA0, True)],
    ids=["permanent", "tentative", "optimistic", "a duplicate", "deprecated"],
)
def test_an_address_counts_from_the_end_of_its_check_for_duplicates(flags: int, is_there: bool) -> None:
    packed = ipaddress.ip_address("2001:db8::5").packed
    attribute = struct.pack("=HH", 4 + len(packed), netlink.ADDRESS) + packed
    body = netlink.ADDRESS_HEAD.pack(socket.AF_INET6, 64, flags, 0, ETHERNET.index) + attribute
    found = netlink._address(body, {ETHERNET.index: ETHERNET})
    assert (found is not None) is is_there
