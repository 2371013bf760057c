"""UDP addresses: their canonical text form and their byte form. What leads to one is a path (``base/path.py``)."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import NamedTuple

DUMMY_HOST = "192.0.0.8"  # RFC 7600 section 4.8: an address that no host has


class Addr(NamedTuple):
    """A UDP address. ``host`` is canonical IPv4 or IPv6 text (v4-mapped folded, link-local with ``%scope``)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


NO_HOST = frozenset(" /\\@?#[]")  # characters that no host has
MAX_HOST = 253  # characters of a name: RFC 1035 section 2.3.4
MAX_SHOWN = 64  # characters of a wrong text
NOWHERE = Addr(DUMMY_HOST, 9)  # stands for a detour where only UDP addresses are understood


def canonical_host(text: str) -> str:
    """Return the canonical text of an IP address: lowercase, compressed (RFC 5952), a v4-mapped one as IPv4.

    Two texts of one address compare equal only in this form. Raises ValueError for a host name and other text.
    """
    ip = ipaddress.ip_address(text)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ip)


def parse_port(text: str) -> int | None:
    """Return the number of a port, 0 to 65535; None for other text."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        return None
    port = int(text)
    return port if port <= 65535 else None


def parse_host(text: str) -> str | None:
    """Return a host name or an IP address, an IPv6 address without its brackets; None for what is neither.

    The empty text is one, for callers that have a default.
    """
    is_bracketed = text.startswith("[") and text.endswith("]")
    host = text[1:-1] if is_bracketed else text
    if is_bracketed or ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            return None
    return host if host.isprintable() and len(host) <= MAX_HOST and not set(host) & NO_HOST else None


def parse_addr(text: str) -> Addr:
    """Parse ``1.2.3.4:5``, ``[::1]:5`` or ``:5`` (the unspecified address ``::``).

    An IPv6 address needs its brackets. Port 0 is taken, names are not. Raises ValueError with what is wrong.
    """
    host, separator, port_text = text.rpartition(":")
    port = parse_port(port_text)
    if not separator or port is None:
        raise ValueError(f"{text[:MAX_SHOWN]!r} is not ADDRESS:PORT")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address needs brackets, as in [::1]:4242")
    try:
        return Addr(canonical_host(host or "::"), port)
    except ValueError as error:
        raise ValueError(f"{text!r}: {host!r} is not an IP address") from error


@lru_cache(maxsize=1024)
def ip_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the IP address of an ``Addr``'s host, without its scope.

    A dial asks four times, and to parse takes longer than what is done with it. Raises ValueError for a detour.
    """
    return ipaddress.ip_address(host.partition("%")[0])


def pack_addr(addr: Addr) -> bytes:
    """Return 4 or 16 address bytes and a 2-byte big-endian port, as records and observed addresses carry them.

    A scope is dropped: it means something only on this host. Raises ValueError for a detour.
    """
    return ip_of(addr.host).packed + addr.port.to_bytes(2, "big")


def unpack_addr(data: bytes) -> Addr:
    """Return the address that ``pack_addr`` packed into 6 or 18 bytes.

    Raises ValueError for any other length. Port 0 and multicast pass: see ``is_dialable``.
    """
    if len(data) == 6:
        return Addr(".".join(map(str, data[:4])), int.from_bytes(data[4:], "big"))
    if len(data) != 18:
        raise ValueError("a packed address has 6 or 18 bytes")
    ip = ipaddress.IPv6Address(data[:16])
    return Addr(str(ip if ip.ipv4_mapped is None else ip.ipv4_mapped), int.from_bytes(data[16:], "big"))


def is_dialable(addr: Addr) -> bool:
    """Return whether a datagram to ``addr`` can reach one host by UDP.

    False for port 0, and multicast, unspecified, 0.0.0.0/8 and 240.0.0.0/4 addresses (broadcast among them):
    a record that names one would make its readers send where no single host listens.
    """
    if not 0 < addr.port < 65536:
        return False
    return _is_one_host(ip_of(addr.host).packed)


def unpack_dialable(data: bytes) -> Addr:
    """Return ``unpack_addr`` of bytes from a peer; raises ValueError also when it is not ``is_dialable``."""
    addr = unpack_addr(data)
    packed = data[:-2] if ":" in addr.host or len(data) == 6 else data[12:16]  # an IPv4 address in IPv6 form
    if not addr.port or not _is_one_host(packed):
        raise ValueError("an address that cannot be dialled")
    return addr


def _is_one_host(packed: bytes) -> bool:
    return 0 < packed[0] < 224 if len(packed) == 4 else packed[0] != 0xFF and any(packed)
