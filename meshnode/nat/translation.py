"""IPv4 addresses as a translator of an IPv6 network has them (NAT64, RFC 6052). Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from meshnode.base.address import Addr
from meshnode.base.value import value
from meshnode.nat.local_networks import on_networks

KNOWN = [ipaddress.IPv4Address(host).packed for host in ("192.0.0.170", "192.0.0.171")]  # RFC 7050 section 2.2
LENGTHS = (12, 8, 7, 6, 5, 4)  # of prefixes, in bytes: RFC 6052 section 2.2


def embed(prefix: bytes, ipv4: bytes) -> bytes:
    """Return the IPv6 address of an IPv4 one; its byte 8 is zero unless the prefix has it (RFC 6052 section 2.2)."""
    joined = prefix + ipv4
    if len(prefix) <= 8:
        joined = joined[:8] + b"\0" + joined[8:]
    return joined.ljust(16, b"\0")


def extract(prefix: bytes, ipv6: bytes) -> bytes | None:
    """Return the IPv4 address in an IPv6 one, the inverse of ``embed``; None when it has another prefix."""
    joined = ipv6[:8] + ipv6[9:] if len(prefix) <= 8 else ipv6
    ipv4 = joined[len(prefix) : len(prefix) + 4]
    return ipv4 if embed(prefix, ipv4) == ipv6 else None


def prefix_in(hosts: Iterable[str]) -> bytes | None:
    """Return the prefix under which ``hosts`` are addresses of the known name; None when no IPv6 one is."""
    for host in hosts:
        packed = ipaddress.ip_address(host.partition("%")[0]).packed
        for length in LENGTHS if len(packed) == 16 else ():
            if extract(packed[:length], packed) in KNOWN:
                return packed[:length]
    return None


@value
class Translation:
    """How IPv4 addresses are written for a translator; those on this host's own ``networks`` are not."""

    prefix: bytes
    networks: tuple[tuple[str, int], ...] = ()

    def to_ipv6(self, addr: Addr) -> str | None:
        """Return the IPv6 host that stands for an IPv4 one; None when none does."""
        if ":" in addr.host or on_networks(addr, self.networks):
            return None
        return str(ipaddress.IPv6Address(embed(self.prefix, ipaddress.IPv4Address(addr.host).packed)))

    def to_ipv4(self, host: str) -> str | None:
        """Return the IPv4 host that an IPv6 one stands for; None when it is of no translator."""
        if ":" not in host or "%" in host:
            return None
        ipv4 = extract(self.prefix, ipaddress.IPv6Address(host).packed)
        return str(ipaddress.IPv4Address(ipv4)) if ipv4 is not None else None
