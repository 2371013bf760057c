"""Which addresses of this host its record names, the best first, and which changes of them are moves. Sans-IO.

A record has room for ``MAX_ENDPOINTS``, and a Docker host easily has more: most are bridges that no other host reaches.
"""

from __future__ import annotations

import ipaddress

from meshnode.base.address import Addr
from meshnode.base.limits import MAX_ENDPOINTS
from meshnode.base.value import value
from meshnode.identity.record import Endpoint, EndpointKind

# of Docker, Podman, LXC and libvirt: peers have them too, so that they lead a peer to its own bridge
COMMON_NETWORKS = [
    ipaddress.ip_network(text)
    for text in ("172.16.0.0/12", "10.88.0.0/16", "10.0.3.0/24", "10.0.4.0/24", "192.168.122.0/24")
]
# the driver's name in netlink (IFLA_INFO_KIND), "" for hardware; those that are not listed rank as "veth" does
PHYSICAL_KINDS = frozenset({"", "vlan", "bond", "team", "macvlan", "ipvlan"})
BRIDGE_KINDS = frozenset({"bridge", "openvswitch"})
TUNNEL_KINDS = frozenset({"tun", "wireguard", "ppp", "ipip", "gre", "sit", "ip6tnl", "vti", "xfrm", "vxlan"})

BRIDGE_TIER, TIERS = 2, 3


@value
class Link:
    """A network interface. ``kind`` is its driver's name, "" for hardware.

    ``has_carrier``: up, and a cable, a radio or a member that is up is behind it; ``is_port``: of a bridge.
    """

    index: int
    name: str
    kind: str = ""
    has_carrier: bool = True
    is_port: bool = False

    @property
    def tier(self) -> int:
        """How likely others reach this host by it: 0 hardware, 1 virtual, 2 bridge, 3 tunnel or VPN."""
        if self.kind in PHYSICAL_KINDS:
            return 0
        return BRIDGE_TIER if self.kind in BRIDGE_KINDS else 3 if self.kind in TUNNEL_KINDS else 1


@value
class HostAddress:
    """One unicast address of this host; an IPv6 link-local one is written with its ``%interface``.

    ``is_passing``: an IPv6 privacy address (RFC 8981), or one that is deprecated: others of its network last longer.
    """

    host: str
    prefix: int
    link: Link
    is_passing: bool = False

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        """The address without its scope."""
        return ipaddress.ip_address(self.host.partition("%")[0])

    @property
    def is_routable(self) -> bool:
        """Whether a record can name it: not loopback, and not an IPv6 link-local one, whose scope is this host's."""
        return not self.ip.is_loopback and "%" not in self.host


@value
class WayOut:
    """The default route of one family: the index of its interface, our address there, and the router if any."""

    link: int
    source: str
    router: str = ""


@value
class HostView:
    """The addresses and default routes of this host at one moment, without those by which no other host reaches it.

    Left out are ports of a bridge, bridges without a member that is up, and the link-local addresses of virtual
    interfaces that have no other address (the host's end of a container's cable) where the host has any.
    ``addressed`` are the indexes of all interfaces with a routable address, those left out included.
    """

    addresses: tuple[HostAddress, ...]
    ways_out: tuple[WayOut, ...] = ()
    addressed: frozenset[int] = frozenset()

    def networks(self) -> tuple[tuple[str, int], ...]:
        """Return (address, prefix length): IPv4, IPv6, loopback, link-local."""
        found = sorted(self.addresses, key=_network_order)
        return tuple(dict.fromkeys((a.host, a.prefix) for a in found))

    def hosts(self, *, ipv6: bool) -> list[str]:
        """Return the addresses that others may reach this host at, the best first; loopback where there is no other.

        Only IPv4 without ``ipv6``. An IPv6 link-local address is named, without its scope, for an interface that has
        no other: a cable between two hosts, a LAN without a router.
        The first is one of the default route's interface, then hardware, other virtual interfaces, bridges, tunnels.
        Each (interface, network) has its best address named before any has its second.
        """
        with_routable = {a.link.index for a in self.addresses if a.is_routable}
        named = [
            address
            for address in self.addresses
            if (ipv6 or address.ip.version == 4)
            and not address.ip.is_loopback
            and (address.is_routable or address.link.index not in with_routable)
        ]
        subnets: set[tuple[int, object]] = set()
        first: list[str] = []
        more: list[str] = []
        for address in sorted(named, key=self._order):
            subnet = (address.link.index, ipaddress.ip_network((address.ip, address.prefix), strict=False))
            (more if subnet in subnets else first).append(str(address.ip))
            subnets.add(subnet)
        loopback = [a.host for a in self.addresses if a.host.startswith("127.")]
        return list(dict.fromkeys(first + more)) or loopback or ["127.0.0.1"]

    def _order(self, address: HostAddress) -> tuple[bool, ...]:
        """Return what sorts before: the first difference counts, and False comes first."""
        tier = address.link.tier
        return (
            all(address.link.index != way.link for way in self.ways_out),
            not address.link.has_carrier,
            *(tier > limit for limit in range(TIERS)),
            address.ip.is_link_local,
            any(address.ip in network for network in COMMON_NETWORKS),
            address.ip.version == 6,
            address.is_passing,
            all(address.host != way.source for way in self.ways_out),
        )

    def place(self) -> frozenset[object]:
        """Return what changes when this host moves: addresses and their carriers except on bridges, and the ways out.

        Bridges count where a default route leaves by them; a container that starts is no move. An address that is
        deprecated is left by the kernel, which is one.
        """
        ours = {way.link for way in self.ways_out}
        counted = (a for a in self.addresses if a.link.tier != BRIDGE_TIER or a.link.index in ours)
        return frozenset((a.host, a.prefix, a.is_passing, a.link.index, a.link.has_carrier) for a in counted).union(
            self.ways_out
        )


def host_view(addresses: list[HostAddress], ways_out: tuple[WayOut, ...] = ()) -> HostView:
    """Leave out the addresses by which no other host reaches this one."""
    ours = {way.link for way in ways_out}
    routable = {a.link.index for a in addresses if a.is_routable}

    def counts(address: HostAddress) -> bool:
        link = address.link
        if link.index in ours or address.ip.is_loopback:
            return True
        if link.is_port or (link.kind in BRIDGE_KINDS and not link.has_carrier):
            return False
        return link.tier == 0 or link.index in routable or not routable

    kept = tuple(a for a in addresses if counts(a))
    return HostView(kept, ways_out, frozenset(routable or (a.link.index for a in addresses)))


def _network_order(address: HostAddress) -> int:
    if address.ip.is_link_local:
        return 3
    return 2 if address.ip.is_loopback else int(address.ip.version == 6)


def named(endpoints: tuple[Endpoint, ...], seen: tuple[Addr, ...]) -> tuple[Endpoint, ...]:
    """Return what a record names: mapped addresses, those as which others see this node (``seen``), its own.

    The last are left out where there are more than ``MAX_ENDPOINTS``, never those in ``seen``.
    """
    known = {endpoint.addr for endpoint in endpoints}
    reflexive = [Endpoint(addr, EndpointKind.REFLEXIVE) for addr in seen if addr not in known]
    mapped = [e for e in endpoints if e.kind is EndpointKind.MAPPED][: MAX_ENDPOINTS - len(reflexive)]
    own = [e for e in endpoints if e.kind is not EndpointKind.MAPPED]
    return tuple(dict.fromkeys([*mapped, *reflexive, *own]))[:MAX_ENDPOINTS]
