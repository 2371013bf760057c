"""Links that carry less than Ethernet: on the host, in the middle, from the start and of a sudden."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from meshnode.base.limits import BASE_MTU, DHT_MAX_BODY
from meshnode.identity.sealing import SEAL_OVERHEAD
from meshnode.relay.frames import FRAME_OVERHEAD
from tests.netns import natlab
from tests.netns.lab import IFACE
from tests.netns.natlab import NatLab
from tests.netns.natmesh import DIRECT, NatMesh, Pair
from tests.netns.test_traversal import unharmed

pytestmark = pytest.mark.netns

PULL = 1_500_000
IPV6_AND_UDP = 48
IPV6_MINIMUM = 1280


def test_what_a_relay_carries_fits_the_smallest_link_that_ipv6_allows() -> None:
    for largest in (BASE_MTU, DHT_MAX_BODY + SEAL_OVERHEAD):
        assert largest + FRAME_OVERHEAD + IPV6_AND_UDP <= IPV6_MINIMUM


@pytest.fixture
def mesh() -> Iterator[NatMesh]:
    natlab.require()
    with NatLab() as lab:
        yield NatMesh(lab)


def _works(pair: Pair) -> None:
    pulled = pair.dialler.ask("pull", 40, peer=pair.listener.id, bytes=PULL)
    assert pulled["bytes"] == PULL
    time.sleep(0.3)  # of the stream beside it
    unharmed(pair.settled())


def _narrow(pair: Pair, side: int, mtu: int) -> None:
    """Both NATs' hosts see Ethernet; the link before this NAT carries less and does not say so."""
    site = pair.sites[side]
    site.exec("nft", "add", "chain", "ip", "lab", "mute", "{ type filter hook output priority 0; }")
    site.exec("nft", "add", "rule", "ip", "lab", "mute", "meta", "l4proto", "icmp", "drop")
    site.ip(f"link set {IFACE} mtu {mtu}")


def test_hosts_on_1280_byte_links_talk_directly(mesh: NatMesh) -> None:
    for kind, number in (("full_cone", 0), ("port_restricted", 1)):
        mesh.site(kind, number)[1].ip(f"link set {IFACE} mtu 1280")
    pair = mesh.pair("full_cone", "port_restricted")
    pair.open()
    assert pair.wait_for()["path"] in DIRECT
    _works(pair)


def test_hosts_on_1280_byte_links_talk_through_a_relay(mesh: NatMesh) -> None:
    for number in (0, 1):
        mesh.site("symmetric", number)[1].ip(f"link set {IFACE} mtu 1280")
    pair = mesh.pair("symmetric", "symmetric")
    assert pair.open()["path"] == "relay"
    _works(pair)


@pytest.mark.parametrize("side", [0, 1], ids=["dialler", "listener"])
def test_a_host_whose_link_is_too_small_for_quic_is_reached_by_websocket(mesh: NatMesh, side: int) -> None:
    """Small probes pass on it, first packets of a handshake do not, to the relays neither."""
    for number in (0, 1):
        mesh.site("full_cone", number)[1].ip(f"link set {IFACE} mtu {1100 if number == side else 1500}")
    began = time.monotonic()
    pair = mesh.pair("full_cone", "full_cone")
    joined = time.monotonic() - began
    opened = pair.open()
    print(f"joined in {joined:.1f} s, first byte after {opened['first_byte_ms']:.0f} ms, by {opened['path']}")
    assert opened["first_byte_ms"] < 4_000
    _works(pair)
    assert pair.dialler.ask("report")["path"] not in DIRECT
    assert pair.listener_path() not in DIRECT


@pytest.mark.parametrize("mtu", [1500, 1268], ids=["larger packets fit", "the base alone"])
def test_a_link_in_the_middle_that_becomes_too_small_for_quic_is_left_for_a_relay(mesh: NatMesh, mtu: int) -> None:
    pair = mesh.pair("port_restricted", "port_restricted")
    for side in (0, 1) if mtu < 1500 else ():
        _narrow(pair, side, mtu)
    pair.open()
    assert pair.wait_for()["path"] in DIRECT
    site = pair.sites[1]
    site.exec("nft", "add", "chain", "ip", "lab", "small", "{ type filter hook forward priority 0; }")
    for way in ("daddr", "saddr"):
        rule = ["meta", "l4proto", "udp", "ip", way, pair.sites[0].outside, "meta", "length", ">", "1100", "drop"]
        site.exec("nft", "add", "rule", "ip", "lab", "small", *rule)
    began = time.monotonic()
    _works(pair)
    took = time.monotonic() - began
    print(f"{PULL} bytes beside a hole for large packets in {took:.1f} s")
    assert took < 10
    assert pair.listener_path() == "relay"


def test_a_link_in_the_middle_that_swallows_large_packets_is_noticed(mesh: NatMesh) -> None:
    pair = mesh.pair("port_restricted", "port_restricted")
    pair.open()
    assert pair.wait_for()["path"] in DIRECT
    _works(pair)
    time.sleep(1.0)
    _narrow(pair, 1, 1280)  # the listener sends the data: from now on its full packets vanish
    began = time.monotonic()
    _works(pair)
    took = time.monotonic() - began
    print(f"{PULL} bytes over the black hole in {took:.1f} s")
    assert took < 10
    assert pair.dialler.ask("report")["path"] in DIRECT
