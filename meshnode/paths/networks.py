"""Which addresses are on our own networks."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from meshnode.address import Addr


@lru_cache(maxsize=256)
def _network(host: str, prefix: int) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(f"{host.partition('%')[0]}/{prefix}", strict=False)


def is_loopback(addr: Addr) -> bool:
    """True for an address that never leaves this host."""
    return addr.is_udp and ipaddress.ip_address(addr.host.partition("%")[0]).is_loopback


def on_networks(addr: Addr, networks: Iterable[tuple[str, int]]) -> bool:
    """True for loopback, link-local, and what is in one of these networks (address, prefix length)."""
    ip = ipaddress.ip_address(addr.host.partition("%")[0])
    return ip.is_loopback or ip.is_link_local or any(ip in _network(host, prefix) for host, prefix in networks)
