"""Classic BPF filters that drop datagrams of IPv4 sources before they reach a UDP socket; Linux, no privileges.

Reading a datagram only to drop it costs 2 to 4 us, and a flood that is not read fast enough fills the socket's buffer,
in which peers' packets then find no room. So what is refused is dropped here; and while the buffer is nearly full of
what may be anything, a part of all is, but for what comes from where connections are. See ``man 7 socket``,
SO_ATTACH_FILTER, and linux/filter.h; a UDP socket's filter sees a packet from its UDP header on, and the IP header at
``SKF_NET_OFF``.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
import sys
from collections.abc import Callable, Iterable

from meshnode.base.address import Addr
from meshnode.base.metrics import Metrics, describe

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27  # asm-generic/socket.h
LOAD_WORD, LOAD_HALF, LOAD_BYTE, EQUALS, AND, RETURN = 0x20, 0x28, 0x30, 0x15, 0x54, 0x06  # absolute, and by constant
IP_HEADER = 0xFFF00000  # SKF_NET_OFF
SOURCE_ADDRESS, SOURCE_PORT = IP_HEADER + 12, 0
AT_LEAST = 0x35
RANDOM = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM
SO_MEMINFO = 55  # linux/sock_diag.h: what the buffer holds, its room, and more
ALL = 0xFFFFFFFF
FLOOD = 200  # refused receptions that make a filter worth its while
FILTER_S = 1.0
MAX_SOURCES = 64  # 5 instructions each, of at most 4,096

MAX_FAVOURED = 800
LOOK_S = 0.1  # between looks whether the buffer is nearly full
NEARLY = 0.75  # of its room
PASSES = (2, 4, 8)  # one in so many datagrams passes while it is, fewer while it still is; a move has 13 a second

CROWDED = describe("udp_crowded", "times that the kernel was told to drop a part of all but peers' packets: no room")
FILTERED = describe("udp_filtered", "seconds in which the kernel dropped what floods sent")


Code = list[tuple[int, int, int, int]]
IPV4_ONLY: Code = [(LOAD_BYTE, 0, 0, IP_HEADER), (AND, 0, 0, 0xF0), (EQUALS, 1, 0, 0x40), (RETURN, 0, 0, ALL)]


def program(sources: Iterable[Addr]) -> bytes:
    """Return the instructions that drop what comes from these IPv4 sources; other packets pass."""
    return _packed([*IPV4_ONLY, *_returns(sources, 0), (RETURN, 0, 0, ALL)])


def crowded(favoured: Iterable[Addr], passes: int) -> bytes:
    """Return the instructions that let one IPv4 packet in ``passes`` pass by lot, and all from favoured sources."""
    by_lot = [(LOAD_WORD, 0, 0, RANDOM), (AT_LEAST, 0, 1, ALL // passes), (RETURN, 0, 0, 0), (RETURN, 0, 0, ALL)]
    return _packed([*IPV4_ONLY, *_returns(favoured, ALL), *by_lot])


def _returns(sources: Iterable[Addr], what: int) -> Code:
    code: Code = []
    for source in sources:
        (address,) = struct.unpack("!I", socket.inet_aton(source.host))
        code += [
            (LOAD_WORD, 0, 0, SOURCE_ADDRESS),
            (EQUALS, 0, 3, address),
            (LOAD_HALF, 0, 0, SOURCE_PORT),
            (EQUALS, 0, 1, source.port),
            (RETURN, 0, 0, what),
        ]
    return code


def _packed(code: Code) -> bytes:
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _ipv4(sources: Iterable[object], most: int) -> list[Addr]:
    return [source for source in sources if isinstance(source, Addr) and ":" not in source.host][:most]


def attach(sock: socket.socket, sources: Iterable[object]) -> bool:
    """Drop what comes from the first ``MAX_SOURCES`` IPv4 sources, in place of an earlier filter.

    Returns False where there is none of them, or the kernel has no such filters.
    """
    chosen = _ipv4(sources, MAX_SOURCES)
    return bool(chosen) and _attach(sock, program(chosen))


def _attach(sock: socket.socket, code: bytes) -> bool:
    if sys.platform != "linux":
        return False
    held = ctypes.create_string_buffer(code, len(code))  # the kernel copies it
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(code) // 8, ctypes.addressof(held)))
    except OSError:
        return False
    return True


def detach(sock: socket.socket) -> None:
    """Let everything pass again.

    Nothing happens when there is no filter, or the socket is closed.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    except OSError:
        pass


def is_nearly_full(sock: socket.socket) -> bool:
    """Return whether the socket's buffer has little room left; False where the kernel does not tell."""
    if sys.platform != "linux":
        return False
    try:
        used, room = struct.unpack("=2I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 8))
    except (OSError, struct.error):
        return False
    return bool(used > NEARLY * room)


class FloodFilter:
    """Has the kernel drop what is refused, for ``FILTER_S`` a time: a flood that goes on is refused again.

    While the buffer is nearly full it drops a part of all that is not from ``favoured`` sources instead, more of it the
    longer that lasts, and less again step by step.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        metrics: Metrics,
        favoured: Callable[[], Iterable[object]] = tuple,
    ) -> None:
        self._loop = loop
        self._metrics = metrics
        self.favoured = favoured
        self._refused = 0  # receptions since the last filter
        self._is_on = False
        self._level = 0  # of PASSES, while the buffer is nearly full
        self._looked = 0.0

    def for_new_socket(self) -> FloodFilter:
        """Return a filter for another socket."""
        return FloodFilter(self._loop, self._metrics, self.favoured)

    def on_refused(self, sock: socket.socket, count: int, sources: Iterable[object]) -> None:
        """Note so many more receptions from ``sources``; past ``FLOOD`` the kernel takes over."""
        self._refused += count
        if self._refused < FLOOD or self._is_on or self._level:
            return
        self._refused = 0
        if attach(sock, sources):
            self._is_on = True
            self._metrics.count(FILTERED)
            self._loop.call_later(FILTER_S, self._end, sock)

    def _end(self, sock: socket.socket) -> None:
        self._is_on = False
        self._refused = 0
        if not self._level:
            detach(sock)

    def on_more(self, sock: socket.socket) -> None:
        """Note that a round of reading left something: look whether much, at most once in ``LOOK_S``."""
        now = self._loop.time()
        if now < self._looked + LOOK_S:
            return
        self._looked = now
        if not is_nearly_full(sock) or not self._crowd(sock, min(self._level + 1, len(PASSES))):
            return
        if not self._level:
            self._loop.call_later(FILTER_S, self._ease, sock)
        self._level = min(self._level + 1, len(PASSES))
        self._metrics.count(CROWDED)

    def _crowd(self, sock: socket.socket, level: int) -> bool:
        return _attach(sock, crowded(_ipv4(self.favoured(), MAX_FAVOURED), PASSES[level - 1]))

    def _ease(self, sock: socket.socket) -> None:
        self._level -= 1
        if self._level and self._crowd(sock, self._level):
            self._loop.call_later(FILTER_S, self._ease, sock)
        else:
            self._level = 0
            detach(sock)
