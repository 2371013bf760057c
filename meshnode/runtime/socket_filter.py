"""Classic BPF filters that drop datagrams by their source before they reach a UDP socket; Linux, no privileges.

Reading a datagram only to drop it costs 2 to 4 us, and a flood that is not read fast enough fills the socket's buffer,
in which peers' packets then find no room. So what is refused is dropped here; and while the buffer is nearly full of
what may be anything, a part of all is, but for what comes from where connections are. See ``man 7 socket``,
SO_ATTACH_FILTER, and linux/filter.h; a UDP socket's filter sees a packet from its UDP header on, and the IP header at
``SKF_NET_OFF``.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from secrets import randbits

from meshnode.base.address import Addr
from meshnode.base.metrics import Metrics, describe

SO_TIMESTAMPNS = 35  # asm-generic/socket.h: two longs, the clock of the wall when the kernel took the packet
RECEIVED_AT = (socket.SOL_SOCKET, SO_TIMESTAMPNS)  # level and type of the ancillary data
TIMESPEC = struct.Struct("@ll")
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27  # asm-generic/socket.h
LOAD_WORD, LOAD_HALF, LOAD_BYTE, EQUALS, AND, RETURN = 0x20, 0x28, 0x30, 0x15, 0x54, 0x06  # absolute, and by constant
IP_HEADER = 0xFFF00000  # SKF_NET_OFF
SOURCE_4, SOURCE_6, SOURCE_PORT = IP_HEADER + 12, IP_HEADER + 8, 0
TIMES, KEEP, XOR_KEPT, JUMP = 0x24, 0x07, 0xAC, 0x05  # by a constant, TAX, by X, always
AT_LEAST = 0x35
RANDOM = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM
SO_MEMINFO = 55  # linux/sock_diag.h: what the buffer holds, its room, and more
ALL = 0xFFFFFFFF
FLOOD = 200  # refused receptions that make a filter worth its while
FILTER_S = 1.0
MAX_SOURCES = 64
MAX_FAVOURED = 1_600  # more than peers' connections (1,536); optmem_max (20 kB on older kernels) has room for 2,000
LOOK_S = 0.1  # between looks whether the buffer is nearly full
NEARLY = 0.75  # of its room
PASSES = (2, 4, 8)  # one in so many datagrams passes while it is, fewer while it still is; a move has 13 a second

CROWDED = describe("udp_crowded", "times that the kernel was told to drop a part of all but peers' packets: no room")
FILTERED = describe("udp_filtered", "seconds in which the kernel dropped what floods sent")


Code = list[tuple[int, int, int, int]]
FAMILY: Code = [(LOAD_BYTE, 0, 0, IP_HEADER), (AND, 0, 0, 0xF0), (EQUALS, 0, 1, 0x40)]  # IPv4: the next, else behind it
BLOCK = 200  # sources that share one end: a jump by a condition is of 255 instructions at most


def program(sources: Iterable[Addr]) -> bytes:
    """Return the instructions that drop what comes from these sources; other packets pass."""
    return _packed(sources, 0, [(RETURN, 0, 0, ALL)])


def crowded(favoured: Iterable[Addr], passes: int) -> bytes:
    """Return the instructions that let one packet in ``passes`` pass by lot, and all from favoured sources."""
    by_lot = [(LOAD_WORD, 0, 0, RANDOM), (AT_LEAST, 0, 1, ALL // passes), (RETURN, 0, 0, 0), (RETURN, 0, 0, ALL)]
    return _packed(favoured, ALL, by_lot)


def _packed(sources: Iterable[Addr], what: int, otherwise: Code) -> bytes:
    """Return a program: ``what`` is the verdict on the sources, ``otherwise`` the end for all others.

    A source is compared as 32 bits, one instruction each: its port and the words of its address, multiplied by secret
    numbers, so none can be made that counts as another one.
    """
    keys = [randbits(32) | 1 for _ in range(4)]
    of: dict[int, list[int]] = {4: [], 16: []}
    for source in sources:
        packed = ipaddress.ip_address(source.host.partition("%")[0]).packed
        of[len(packed)].append(_mixed(struct.unpack(f"!{len(packed) // 4}I", packed), source.port, keys))
    four, six = (
        [*_mixing(first, words, keys), *_among(of[4 * words], what), *otherwise]
        for first, words in ((SOURCE_4, 1), (SOURCE_6, 4))
    )
    code = [*FAMILY, (JUMP, 0, 0, len(six)), *six, *four]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _mixed(words: Sequence[int], port: int, keys: list[int]) -> int:
    found = port
    for word, key in zip(words, keys, strict=False):
        found = (found * key & ALL) ^ word
    return found


def _mixing(first: int, words: int, keys: list[int]) -> Code:
    """Return the instructions that do the same with a packet's source."""
    code: Code = [(LOAD_HALF, 0, 0, SOURCE_PORT)]
    for number in range(words):
        code += [
            (TIMES, 0, 0, keys[number]),
            (KEEP, 0, 0, 0),
            (LOAD_WORD, 0, 0, first + 4 * number),
            (XOR_KEPT, 0, 0, 0),
        ]
    return code


def _among(found: list[int], what: int) -> Code:
    code: Code = []
    for at in range(0, len(found), BLOCK):
        block = found[at : at + BLOCK]
        code += [(EQUALS, len(block) - number, 0, each) for number, each in enumerate(block)]
        code += [(JUMP, 0, 0, 1), (RETURN, 0, 0, what)]
    return code


def _named(sources: Iterable[object], most: int) -> list[Addr]:
    return [source for source in sources if isinstance(source, Addr)][:most]


def attach(sock: socket.socket, sources: Iterable[object]) -> bool:
    """Drop what comes from the first ``MAX_SOURCES`` UDP sources, in place of an earlier filter.

    Returns False where there is none of them, or the kernel has no such filters.
    """
    chosen = _named(sources, MAX_SOURCES)
    return bool(chosen) and _attach(sock, program(chosen))


def _attach(sock: socket.socket, code: bytes) -> bool:
    if sys.platform != "linux":
        return False
    held = array("B", code)  # the kernel copies it
    where, _ = held.buffer_info()
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(code) // 8, where))
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
        return _attach(sock, crowded(_named(self.favoured(), MAX_FAVOURED), PASSES[level - 1]))

    def _ease(self, sock: socket.socket) -> None:
        self._level -= 1
        if self._level and self._crowd(sock, self._level):
            self._loop.call_later(FILTER_S, self._ease, sock)
        else:
            self._level = 0
            detach(sock)


def kernel_ahead() -> float:
    """Return the seconds by which the kernel's clock is ahead of this process's, which a library may change (faketime).

    0.0 where the kernel does not tell.
    """
    try:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with here, there:
            there.setsockopt(*RECEIVED_AT, 1)
            here.send(b"?")
            told = {mark[:2]: mark[2] for mark in there.recvmsg(1, 128)[1]}
    except OSError:
        return 0.0
    if RECEIVED_AT not in told:
        return 0.0
    seconds, nanoseconds = TIMESPEC.unpack(told[RECEIVED_AT])
    return float(seconds + nanoseconds / 1e9 - time.time())
