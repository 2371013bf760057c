"""Transport addresses: one canonical text form, one byte form, and which of them may be dialled."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple


class Addr(NamedTuple):
    """A UDP address. ``host`` is canonical IPv4 or IPv6 text (v4-mapped folded, link-local with ``%scope``)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def canonical_host(text: str) -> str:
    """Return the canonical text of an IP address; raises ValueError when it is none."""
    ip = ipaddress.ip_address(text)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ip)


def parse_addr(text: str) -> Addr:
    """Parse ``1.2.3.4:5``, ``[::1]:5`` or ``:5`` (any address); raises ValueError with what is wrong."""
    host, separator, port_text = text.rpartition(":")
    if not separator or not port_text.isascii() or not port_text.isdigit() or int(port_text) > 65535:
        raise ValueError(f"{text!r} is not ADDRESS:PORT")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address needs brackets, as in [::1]:4242")
    try:
        return Addr(canonical_host(host or "::"), int(port_text))
    except ValueError as error:
        raise ValueError(f"{text!r}: {host!r} is not an IP address") from error


def pack_addr(addr: Addr) -> bytes:
    """Return 4 or 16 address bytes and a 2-byte big-endian port; a scope is dropped."""
    return ipaddress.ip_address(addr.host.partition("%")[0]).packed + addr.port.to_bytes(2, "big")


def unpack_addr(data: bytes) -> Addr:
    """The inverse of ``pack_addr``; raises ValueError for any other length."""
    if len(data) not in (6, 18):
        raise ValueError("a packed address has 6 or 18 bytes")
    return Addr(canonical_host(str(ipaddress.ip_address(data[:-2]))), int.from_bytes(data[-2:], "big"))


def is_dialable(addr: Addr) -> bool:
    """False for port 0 and for multicast, broadcast and unspecified addresses: nobody's unicast endpoint."""
    if not 0 < addr.port < 65536:
        return False
    ip = ipaddress.ip_address(addr.host.partition("%")[0])
    if ip.is_multicast or ip.is_unspecified:
        return False
    return not (isinstance(ip, ipaddress.IPv4Address) and (ip.packed[0] == 0 or ip.packed[0] >= 240))
