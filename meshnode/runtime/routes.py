"""The routers of this host's default routes. Linux only: elsewhere none is known, and none is asked for a mapping.

The kernel's own tables are read (``/proc/net``), so that a mapping is asked of the default gateway alone.
"""

from __future__ import annotations

import array
import fcntl
import ipaddress
import socket
import struct
from pathlib import Path

from meshnode.base.address import Addr
from meshnode.base.limits import MAX_ROUTE_TABLE
from meshnode.nat.portmap.vocabulary import Route

PROC = Path("/proc/net")
UP, GATEWAY = 0x1, 0x2  # linux/route.h
TENTATIVE, DEPRECATED, DAD_FAILED = 0x40, 0x20, 0x08  # linux/if_addr.h
GLOBAL_SCOPE = 0
SIOCGIFCONF, SIOCGIFNETMASK, SIOCGIFINDEX = 0x8912, 0x891B, 0x8933  # linux/sockios.h
IFREQ_SIZE, MAX_IFREQS = 40, 256  # linux/if.h, on a 64-bit machine
# documentation's addresses (RFC 5737, RFC 3849): no host has them, so their route is the default route
DOCUMENTATION4, DOCUMENTATION6 = "192.0.2.1", "2001:db8:ffff:ffff::1"


def _lines(name: str) -> list[list[str]]:
    try:
        with (PROC / name).open() as table:
            return [line.split() for line in table.read(MAX_ROUTE_TABLE).splitlines()]
    except OSError:
        return []


def gateways4() -> list[tuple[str, str]]:
    """Return (router, interface) of the IPv4 default routes, the preferred first.

    Read from ``/proc/net/route``; preferred is the one with the lowest metric. Empty where there is no such file.
    """
    found = []
    for fields in _lines("route")[1:]:
        if len(fields) < 8 or int(fields[1], 16) or int(fields[7], 16) or int(fields[3], 16) & (UP | GATEWAY) != 3:
            continue
        router = ipaddress.IPv4Address(bytes.fromhex(fields[2])[::-1] if _LITTLE else bytes.fromhex(fields[2]))
        found.append((int(fields[6]), str(router), fields[0]))
    return [(router, interface) for _, router, interface in sorted(found)]


def gateways6() -> list[tuple[str, str]]:
    """Return (router, interface) of the IPv6 default routes, the preferred first.

    Read from ``/proc/net/ipv6_route``; a link-local router is written with its ``%interface``.
    """
    found = []
    for fields in _lines("ipv6_route"):
        if len(fields) < 10 or fields[1] != "00" or int(fields[0], 16) or int(fields[8], 16) & 3 != 3:
            continue
        router = ipaddress.IPv6Address(bytes.fromhex(fields[4]))
        text = f"{router}%{fields[9]}" if router.is_link_local else str(router)
        found.append((int(fields[5], 16), text, fields[9]))
    return [(router, interface) for _, router, interface in sorted(found)]


def _addresses6(interface: str) -> list[str]:
    """Return an interface's global addresses: neither link-local nor unique local, tentative or deprecated."""
    found = []
    for fields in _lines("if_inet6"):
        if len(fields) < 6 or fields[5] != interface or int(fields[3], 16) != GLOBAL_SCOPE:
            continue
        ip = ipaddress.IPv6Address(bytes.fromhex(fields[0]))
        if int(fields[4], 16) & (TENTATIVE | DEPRECATED) == 0 and ip.packed[0] & 0xFE != 0xFC:
            found.append(str(ip))
    return found


def tentative_addresses() -> frozenset[str]:
    """Return the IPv6 addresses that duplicate address detection still checks, as ``/proc/net/if_inet6`` writes them.

    Nothing can be bound to one (RFC 4862 section 5.4). Empty where there is no such file.
    """
    return frozenset(
        fields[0]
        for fields in _lines("if_inet6")
        if len(fields) >= 6 and int(fields[4], 16) & (TENTATIVE | DAD_FAILED) == TENTATIVE
    )


def source_towards(host: str) -> str | None:
    """Return this host's address towards ``host``: connecting a UDP socket asks the kernel and sends nothing."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None


def default_routes(bound: Addr) -> list[Route]:
    """Return the routes on which a mapping of a socket bound to ``bound`` makes sense: at most one for IPv4.

    None for a loopback address, none for an IPv4 address that is public already, and none where the way out is
    not through the gateway but, say, a VPN: a mapping would publish the very address that it hides.
    """
    host = ipaddress.ip_address(bound.host.partition("%")[0])
    if host.is_loopback:
        return []
    found = []
    if host.version == 4 or host.is_unspecified:
        found += _routes4(None if host.is_unspecified else bound.host)
    if host.version == 6:
        found += _routes6(None if host.is_unspecified else bound.host)
    return found


def _routes4(bound: str | None) -> list[Route]:
    way_out = source_towards(DOCUMENTATION4)
    for router, interface in gateways4():
        internal = bound or source_towards(router)
        if internal is None or (bound is not None and bound not in _addresses4(interface)):
            continue
        if way_out in (internal, None) and not ipaddress.IPv4Address(internal).is_global:
            return [Route(router, internal)]
        break
    return []


def _routes6(bound: str | None) -> list[Route]:
    way_out = source_towards(DOCUMENTATION6)
    for router, interface in gateways6()[:1]:
        own = _addresses6(interface)
        if way_out is None or way_out in own:
            return [Route(router, address) for address in own if bound in (None, address)]
    return []


def _addresses4(interface: str) -> list[str]:
    return [host for name, _, host, _ in ioctl_addresses() if name == interface and ":" not in host]


def ioctl_addresses() -> list[tuple[str, int, str, int]]:
    """Return (interface, its index, address, prefix length) as Linux tells them without netlink.

    IPv6 as far as ``/proc`` tells; IPv4 only where a socket may be opened.
    """
    found = []
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            buffer = array.array("B", bytes(IFREQ_SIZE * MAX_IFREQS))
            asked = struct.pack("iL", len(buffer), buffer.buffer_info()[0])
            (size,) = struct.unpack_from("i", fcntl.ioctl(probe, SIOCGIFCONF, asked))
            for at in range(0, size, IFREQ_SIZE):
                request = bytes(buffer[at : at + IFREQ_SIZE])
                mask = fcntl.ioctl(probe, SIOCGIFNETMASK, request)[20:24]
                (index,) = struct.unpack_from("i", fcntl.ioctl(probe, SIOCGIFINDEX, request), 16)
                name = request[:16].partition(b"\0")[0].decode(errors="replace")
                found.append((name, index, socket.inet_ntoa(request[20:24]), int.from_bytes(mask).bit_count()))
    except OSError:
        found = []
    for fields in _lines("if_inet6"):
        if len(fields) >= 6:
            host = str(ipaddress.IPv6Address(bytes.fromhex(fields[0])))
            found.append((fields[5], int(fields[1], 16), host, int(fields[2], 16)))
    return found


_LITTLE = socket.htons(1) != 1  # the table prints addresses as numbers of the host's byte order
