"""Where datagrams go: UDP addresses, and the two detours that stand in for one.

A UDP address has a canonical text form and a byte form. A *relayed* address means "through that relay", a
*tunnel* means "as messages of a WebSocket to that host"; both are valid only inside this node, never on the wire.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

DETOUR_MARK = "!"
RELAY_MARK = "relay!"
SIDE_MARK = "%side"
TUNNEL_MARK = "wss!"

DUMMY_HOST = "192.0.0.8"  # RFC 7600 section 4.8: an address that no host has


class Addr(NamedTuple):
    """A UDP address. ``host`` is canonical IPv4 or IPv6 text (v4-mapped folded, link-local with ``%scope``)."""

    host: str
    port: int

    @property
    def is_udp(self) -> bool:
        """True for a plain UDP address, False for a detour."""
        return DETOUR_MARK not in self.host

    @property
    def is_relayed(self) -> bool:
        """True for "through that relay"."""
        return self.host.startswith(RELAY_MARK)

    @property
    def side(self) -> int | None:
        """The extra socket by which to send there (``paths/search.py``); None for the node's own one."""
        _, mark, number = self.host.partition(SIDE_MARK)
        return int(number) if mark else None

    def through(self, side: int) -> Addr:
        """Return this IPv4 address "by that extra socket"; an IPv4 address has no other scope."""
        return Addr(f"{self.host}{SIDE_MARK}{side}", self.port)

    @property
    def is_tunnel(self) -> bool:
        """True for "over a WebSocket to that host"."""
        return self.host.startswith(TUNNEL_MARK)

    def __str__(self) -> str:
        if not self.is_udp:
            return f"{self.host}:{self.port}" if self.port else self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def relayed(relay: str) -> Addr:
    """Return the address "through the relay with this id"."""
    return Addr(RELAY_MARK + relay, 0)


def relay_of(addr: Addr) -> str:
    """Return the relay's id that ``relayed`` was given."""
    return addr.host[len(RELAY_MARK) :]


def tunnel(peer: str, host: str, port: int) -> Addr:
    """Return the address "over a WebSocket to this node on this host" (a name or an IP address).

    With an empty ``peer`` it names a WebSocket that a node opened to us.
    """
    return Addr(f"{TUNNEL_MARK}{peer}@{host}" if peer else TUNNEL_MARK + host, port)


def tunnel_target(addr: Addr) -> tuple[str, str, int]:
    """Return what ``tunnel`` was given: the node's id ("" for a WebSocket that was opened to us), host and port."""
    peer, _, host = addr.host[len(TUNNEL_MARK) :].partition("@")
    return peer, host, addr.port


NOWHERE = Addr(DUMMY_HOST, 9)  # stands for a detour where only UDP addresses are understood


def canonical_host(text: str) -> str:
    """Return the canonical text of an IP address: lowercase, compressed (RFC 5952), a v4-mapped one as IPv4.

    Two texts of one address compare equal only in this form. Raises ValueError for a host name and other text.
    """
    ip = ipaddress.ip_address(text)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ip)


def parse_addr(text: str) -> Addr:
    """Parse ``1.2.3.4:5``, ``[::1]:5`` or ``:5`` (the unspecified address ``::``).

    An IPv6 address needs its brackets. Port 0 is taken, names are not. Raises ValueError with what is wrong.
    """
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
    """Return 4 or 16 address bytes and a 2-byte big-endian port, as records and observed addresses carry them.

    A scope is dropped: it means something only on this host. Raises ValueError for a detour.
    """
    return ipaddress.ip_address(addr.host.partition("%")[0]).packed + addr.port.to_bytes(2, "big")


def unpack_addr(data: bytes) -> Addr:
    """Return the address that ``pack_addr`` packed into 6 or 18 bytes.

    Raises ValueError for any other length. Port 0 and multicast pass: see ``is_dialable``.
    """
    if len(data) not in (6, 18):
        raise ValueError("a packed address has 6 or 18 bytes")
    return Addr(canonical_host(str(ipaddress.ip_address(data[:-2]))), int.from_bytes(data[-2:], "big"))


def is_dialable(addr: Addr) -> bool:
    """Return whether a datagram to ``addr`` can reach one host by UDP.

    False for detours, port 0, and multicast, unspecified, 0.0.0.0/8 and 240.0.0.0/4 addresses (broadcast among them):
    a record that names one would make its readers send where no single host listens.
    """
    if not 0 < addr.port < 65536 or not addr.is_udp:
        return False
    ip = ipaddress.ip_address(addr.host.partition("%")[0])
    if ip.is_multicast or ip.is_unspecified:
        return False
    return not (isinstance(ip, ipaddress.IPv4Address) and (ip.packed[0] == 0 or ip.packed[0] >= 240))
