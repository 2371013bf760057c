"""Interfaces, addresses and routes as Linux tells them, by a netlink socket that stays open (``man 7 rtnetlink``).

Its socket is opened once, so that a host without free descriptors still sees that it has moved; ``/proc`` is not read.
"""

from __future__ import annotations

import errno
import ipaddress
import itertools
import os
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from enum import Enum

from meshnode.base.address import canonical_host
from meshnode.nat.own_addresses import BRIDGE_KINDS, HostAddress, HostView, Link, WayOut, host_view

ERROR, DONE = 2, 3  # linux/netlink.h
REQUEST, DUMP = 0x1, 0x300
NEW_LINK, DELETE_LINK, GET_LINK = 16, 17, 18  # linux/rtnetlink.h
NEW_ADDRESS, DELETE_ADDRESS, GET_ADDRESS = 20, 21, 22
NEW_ROUTE, DELETE_ROUTE, GET_ROUTE = 24, 25, 26
NEW_RULE, DELETE_RULE = 32, 33
HEADER, LINK_HEAD, ADDRESS_HEAD, ROUTE_HEAD = (struct.Struct(f) for f in ("=IHHII", "=BxHiII", "=BBBBI", "=8BI"))
LINK_NAME, LINK_MASTER, LINK_INFO, INFO_KIND, INFO_SLAVE_KIND = 3, 10, 18, 1, 4
ADDRESS, LOCAL, ADDRESS_FLAGS = 1, 2, 8
DESTINATION, OUT_INTERFACE, GATEWAY, PREFERRED_SOURCE = 1, 4, 5, 7
RUNNING = 0x40  # linux/if.h
TEMPORARY, OPTIMISTIC, DAD_FAILED, DEPRECATED, TENTATIVE = 0x1, 0x4, 0x8, 0x20, 0x40  # linux/if_addr.h
ETHERNET, LOOPBACK = 1, 772  # linux/if_arp.h
UNICAST, BY_KERNEL = 1, 2  # of a route: its type, and that it comes with an address
RECEIVE = 1 << 16
MAX_DATAGRAMS = 1_024  # of one answer; the kernel fills 32 kB each: some 20,000 interfaces
# documentation's addresses (RFC 5737, RFC 3849): no host has them, so their route is the default route
WAYS_OUT = ("192.0.2.1", "2001:db8:ffff:ffff::1")


def _padded(size: int) -> int:
    return (size + 3) & ~3


def attributes(data: bytes) -> dict[int, bytes]:
    """Split a run of netlink attributes: type to value.

    What is cut short is left out.
    """
    found, at = {}, 0
    while at + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, at)
        if size < 4 or at + size > len(data):
            break
        found[kind & 0x3FFF] = data[at + 4 : at + size]
        at += _padded(size)
    return found


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Split what one read gave: (type, sequence number, body).

    What is cut short is left out.
    """
    at = 0
    while at + HEADER.size <= len(data):
        size, kind, _, seq, _ = HEADER.unpack_from(data, at)
        if size < HEADER.size or at + size > len(data):
            return
        yield kind, seq, data[at + HEADER.size : at + size]
        at += _padded(size)


class Change(Enum):
    """What an event of the kernel changes."""

    LINK = "link"
    ADDRESS = "address"
    ROUTE = "route"
    RULE = "rule"  # which table of routes is asked: a VPN may come and go with one


def changes(data: bytes) -> Iterator[tuple[Change, int]]:
    """Return what the events of one read change, and of which interface (by index; 0 for several).

    Routes that come and go with an address are left out: the address tells of them.
    """
    for kind, _, body in messages(data):
        if kind in (NEW_LINK, DELETE_LINK) and len(body) >= LINK_HEAD.size:
            yield Change.LINK, LINK_HEAD.unpack_from(body)[2]
        elif kind in (NEW_ADDRESS, DELETE_ADDRESS) and len(body) >= ADDRESS_HEAD.size:
            yield Change.ADDRESS, ADDRESS_HEAD.unpack_from(body)[4]
        elif kind in (NEW_ROUTE, DELETE_ROUTE) and len(body) >= ROUTE_HEAD.size:
            head = ROUTE_HEAD.unpack_from(body)
            if head[7] == UNICAST and head[5] != BY_KERNEL:
                yield Change.ROUTE, int.from_bytes(attributes(body[ROUTE_HEAD.size :]).get(OUT_INTERFACE, b""), _ORDER)
        elif kind in (NEW_RULE, DELETE_RULE):
            yield Change.RULE, 0


class Netlink:
    """Asks the kernel. Raises OSError where netlink is refused (some sandboxes)."""

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise OSError(errno.EAFNOSUPPORT, "netlink is Linux's")
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        self._seq = itertools.count(1)
        try:
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        """Ask no more."""
        self._socket.close()

    def view(self) -> HostView:
        """Return this host's addresses and default routes now.

        Raises OSError.
        """
        links = _links(self._ask(GET_LINK, LINK_HEAD.pack(0, 0, 0, 0, 0), DUMP, NEW_LINK))
        bodies = self._ask(GET_ADDRESS, ADDRESS_HEAD.pack(0, 0, 0, 0, 0), DUMP, NEW_ADDRESS)
        found = [address for body in bodies if (address := _address(body, links)) is not None]
        ways = [way for host in WAYS_OUT if (way := self._way_out(host)) is not None]
        return host_view(found, tuple(ways))

    def _way_out(self, host: str) -> WayOut | None:
        packed = ipaddress.ip_address(host).packed
        family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        head = ROUTE_HEAD.pack(family, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0)
        request = head + struct.pack("=HH", 4 + len(packed), DESTINATION) + packed
        for body in self._ask(GET_ROUTE, request, 0, NEW_ROUTE):
            known = attributes(body[ROUTE_HEAD.size :])
            source, router = known.get(PREFERRED_SOURCE), known.get(GATEWAY)
            if body[7] == UNICAST and source is not None:
                index = int.from_bytes(known.get(OUT_INTERFACE, b""), _ORDER)
                return WayOut(index, _text(source), _text(router) if router is not None else "")
        return None

    def _ask(self, kind: int, body: bytes, flags: int, answer: int) -> list[bytes]:
        """Send a request and return the bodies of its answer: the kernel has queued it when ``send`` returns."""
        seq, found = next(self._seq), []
        size = HEADER.size + len(body)
        self._socket.send(HEADER.pack(size, kind, REQUEST | flags, seq, 0) + body)
        for _ in range(MAX_DATAGRAMS):
            for got, number, content in messages(self._socket.recv(RECEIVE)):
                if number != seq:
                    continue  # left of a request that failed
                if got == answer:
                    found.append(content)
                if got == DONE or not flags:
                    return found
                if got == ERROR:
                    number = -struct.unpack_from("=i", content)[0]
                    raise OSError(number, os.strerror(number))
        raise OSError("netlink: no end of an answer")


def _links(bodies: list[bytes]) -> dict[int, Link]:
    """Interfaces by index. A bridge that never had a member says that it has a carrier: its members are looked at."""
    found, served = {}, set()
    for body in bodies:
        _, hardware, index, flags, _ = LINK_HEAD.unpack_from(body)
        known = attributes(body[LINK_HEAD.size :])
        info = attributes(known.get(LINK_INFO, b""))
        kind = _string(info.get(INFO_KIND, b""))
        if not kind and hardware not in (ETHERNET, LOOPBACK):
            kind = "tun"  # a point-to-point device whose driver has no name
        is_port = _string(info.get(INFO_SLAVE_KIND, b"")) in BRIDGE_KINDS
        if is_port and flags & RUNNING:
            served.add(int.from_bytes(known.get(LINK_MASTER, b""), _ORDER))
        found[index] = Link(index, _string(known.get(LINK_NAME, b"")), kind, bool(flags & RUNNING), is_port)
    return {
        index: replace(link, has_carrier=False) if link.kind == "bridge" and index not in served else link
        for index, link in found.items()
    }


def _address(body: bytes, links: dict[int, Link]) -> HostAddress | None:
    family, prefix, flags, _, index = ADDRESS_HEAD.unpack_from(body)
    known = attributes(body[ADDRESS_HEAD.size :])
    packed, link = known.get(LOCAL) or known.get(ADDRESS), links.get(index)
    if family not in (socket.AF_INET, socket.AF_INET6) or packed is None or link is None:
        return None
    flags = int.from_bytes(known.get(ADDRESS_FLAGS, b""), _ORDER) or flags
    if family == socket.AF_INET6 and _is_unusable(flags):
        return None
    host = _text(packed)
    if ":" in host and ipaddress.ip_address(host).is_link_local:
        host = f"{host}%{link.name}"
    return HostAddress(host, prefix, link, family == socket.AF_INET6 and bool(flags & (TEMPORARY | DEPRECATED)))


def _is_unusable(flags: int) -> bool:
    """Return whether an address is checked for duplicates still, or was found to be one (RFC 4862 section 5.4).

    Nothing can be sent from it. When the check is over, an event tells of it as of a new one.
    """
    return bool(flags & DAD_FAILED) or flags & (TENTATIVE | OPTIMISTIC) == TENTATIVE


def _string(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")


def _text(packed: bytes) -> str:
    return canonical_host(str(ipaddress.ip_address(packed)))


_ORDER = sys.byteorder
