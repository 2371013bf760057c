"""Local addresses that peers ask, where a host has several: what comes to one of them is answered from it.

The kernel answers from an address of its own choice, and a NAT at the peer drops what comes from another one than was
asked. IP_PKTINFO names the address in both directions.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Container, Iterable
from contextlib import suppress

from meshnode.base.address import ip_of
from meshnode.base.fair_rate import path_shares
from meshnode.base.fair_table import FairTable
from meshnode.base.limits import MAX_ASKED
from meshnode.base.path import Path

IP_PKTINFO = 8  # linux/in.h
IPV6_RECVPKTINFO, IPV6_PKTINFO = 49, 50  # linux/in6.h
INFO_4, INFO_6 = (socket.IPPROTO_IP, IP_PKTINFO), (socket.IPPROTO_IPV6, IPV6_PKTINFO)
MAPPED = bytes(10) + b"\xff\xff"  # of an IPv4 address in IPv6 form
QUIET_S = 1.0  # without a datagram that came to an address from which a peer is answered
Mark = tuple[int, int, bytes]  # ancillary data that names one of this host's addresses


class AskedAddresses:
    """By source, the mark of the local address that it asks, unless the kernel chooses that one anyway.

    Sources can be forged, so those that are not proven share their places by network. One that is proven has a place
    of its own, which no newcomer takes.

    Attributes:
        others: The addresses that the kernel may not choose to send from, 16 bytes each.
        proven: Sources of which nothing changes any more, whatever comes from them.
        marks: By source, its mark, and when something came to that address last.
    """

    __slots__ = ("_new", "_settled", "marks", "others", "proven")

    def __init__(self) -> None:
        self.others: frozenset[bytes] = frozenset()
        self.proven: Container[Path] = ()
        self._forget_all()

    def _forget_all(self) -> None:
        self.marks: dict[Path, tuple[Mark, float]] = {}
        self._new: FairTable[Path] = FairTable(MAX_ASKED)
        self._settled: FairTable[Path] = FairTable(MAX_ASKED)  # that were proven

    def begin(self, sock: socket.socket) -> None:
        """Begin again with another socket of the node."""
        self._forget_all()
        tell_destinations(sock, bool(self.others))

    def set_others(self, hosts: Iterable[str], proven: Container[Path], sock: socket.socket | None) -> None:
        """Take the addresses that the kernel may not choose, and what is proven; ``sock`` tells of them."""
        packed = [ip_of(host).packed for host in hosts]
        others = frozenset(each if len(each) == 16 else MAPPED + each for each in packed)
        self.proven = proven
        if others == self.others:
            return
        self.others = others
        for source in [source for source, (mark, _) in self.marks.items() if _own(mark) not in others]:
            self.forget(source)
        if sock is not None:
            tell_destinations(sock, bool(others))

    def note(self, source: Path, ancillary: list[Mark]) -> None:
        """Take note of the address to which a datagram of a source came."""
        for mark in ancillary:  # it says the same in both directions: address and interface
            if mark[:2] not in (INFO_4, INFO_6):
                continue
            if source in self.proven:
                self._refresh(source, mark)
            elif _own(mark) not in self.others:
                self.forget(source)
            else:
                if source not in self.marks:
                    self._enter(source)
                self.marks[source] = mark, time.monotonic()

    def _refresh(self, source: Path, mark: Mark) -> None:
        known, now = self.marks.get(source), time.monotonic()
        if known is None or known[0] != mark:
            return
        self.marks[source] = mark, now
        if source in self._new:
            self._new.discard(source)
            self._settle(source)
        elif int(now) > int(known[1]):  # often enough: those that are silent go first
            self._settled.touch(source)

    def _enter(self, source: Path) -> None:
        gone = self._new.add(source, *path_shares(source))
        if gone is not None and gone in self.proven:
            self._settle(gone)
        elif gone is not None:
            del self.marks[gone]

    def _settle(self, source: Path) -> None:
        gone = self._settled.add(source, *path_shares(source))
        if gone is not None:
            del self.marks[gone]

    def forget(self, source: Path) -> None:
        """Leave it to the kernel from where a source is answered."""
        if self.marks.pop(source, None) is not None:
            self._new.discard(source)
            self._settled.discard(source)

    def may_be_cut_off(self, source: Path) -> bool:
        """Return whether nothing has come to a proven source's address for a while: the way to it may be gone.

        To one that is not proven no byte goes twice.
        """
        return source in self.proven and time.monotonic() - self.marks[source][1] >= QUIET_S


def _own(mark: Mark) -> bytes:
    """Return the address in a mark, in 16 bytes."""
    _, kind, value = mark
    return value[:16] if kind == IPV6_PKTINFO else MAPPED + value[4:8]


def tell_destinations(sock: socket.socket, on: bool) -> None:
    """Have the kernel tell to which address each datagram came, or no longer."""
    is_ipv6 = sock.family == socket.AF_INET6
    level, option = (socket.IPPROTO_IPV6, IPV6_RECVPKTINFO) if is_ipv6 else INFO_4
    with suppress(OSError):
        sock.setsockopt(level, option, on)
