"""Checks of a target: whether it listens, whether it accepts a connection, and what it answers to an HTTP request."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import lru_cache

from meshnode.errors import ConfigError
from meshnode.identity.node_id import quoted
from meshnode.runtime.descriptors import EXHAUSTED, unreserved
from meshnode.runtime.host_names import connect_tcp
from meshnode.services.ends import LOOPBACK, End
from meshnode.services.pool import NO_ANSWER

LOOPBACK6 = "::1"
OF_EITHER = (LOOPBACK, "localhost")  # at which a program is meant that may listen at ::1 alone
CHECK_TIMEOUT_S = 0.8  # with the longest pause before it less than the 2 s after which a dead target is announced
AGAIN_S, ATTEMPTS = 0.02, 500  # of a Unix socket whose listener has as many that wait as it lets
AUTO, CONNECT, HTTP, NONE = "auto", "connect", "http:", "none"
FORM = "--health connect, http:/PATH or none"
MAX_PATH = 1_024  # characters of a path
MAX_HEAD = 16_384  # bytes of a response's head
NO_VERDICT = "this node has no descriptor left to look"  # says nothing of the target
WELL = range(200, 400)  # statuses

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, NLMSG_ERROR = 4, 20, 1, 2  # linux/{netlink,sock_diag}.h
ANY_STATE = 0xFFFFFFFF
LISTEN_STATE = 1 << 10  # linux/tcp_states.h
SO_ACCEPTCON = 0x10000  # linux/net.h
ANY_COOKIE = b"\xff" * 8

Check = Callable[[End], Awaitable[str]]


def parse_health(text: str) -> str:
    """Return a kind of check as it stands.

    Raises ConfigError.
    """
    path = text.removeprefix(HTTP)
    is_path = text.startswith(HTTP) and path.startswith("/") and path.isascii() and path.isprintable()
    if text in (AUTO, CONNECT, NONE) or (is_path and " " not in path and len(path) <= MAX_PATH):
        return text
    raise ConfigError(f"{quoted(text)} is no check", hint=f"write {FORM}, as in http:/healthz")


def check_of(health: str, end: End, first: bytes = b"") -> Check | None:
    """Return the check of a target; None where only its callers find out. ``first`` precedes an HTTP request.

    By default the kernel is asked whether a program listens, so that the target sees no connection; where the kernel
    cannot say that, as for another host, only callers find out.
    """
    if health == NONE:
        return None
    if health == CONNECT:
        return accepts
    if health == AUTO:
        return listens if end.path or (_is_local(end.host) and _kernel_tells()) else None
    path = health.removeprefix(HTTP)
    return lambda end: _in_time(_get(end, path, first))


async def accepts(end: End) -> str:
    """Connect to a target, and return why that fails; "" when it does not."""
    return await _in_time(_connect(end))


async def listens(end: End) -> str:
    """Return why a target of this host cannot be connected to, as far as the kernel knows; "" when it can be.

    A Unix socket that is not known by this path is connected to.
    """
    if end.path:
        return "" if _unix_listening(end.path) else await accepts(end)
    hosts = [end.host, LOOPBACK6] if end.host == LOOPBACK else [end.host]
    found = [_listening(host, end.port, udp=end.udp) for host in hosts]
    return "" if any(each is not False for each in found) else in_words(ConnectionRefusedError(errno.ECONNREFUSED, ""))


async def _in_time(check: Awaitable[str]) -> str:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return await check
    except TimeoutError:
        return NO_ANSWER
    except OSError as error:
        return NO_VERDICT if error.errno in EXHAUSTED else in_words(error)


async def _connect(end: End) -> str:
    (await reach(end)).close()
    return ""


async def _get(end: End, path: str, first: bytes) -> str:
    import h11

    reader, writer = await asyncio.open_connection(sock=await reach(end))
    try:
        client = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        host = "localhost" if end.path else str(end)
        headers = [("Host", host), ("User-Agent", "meshnode-health"), ("Connection", "close")]
        request = h11.Request(method="GET", target=path, headers=headers)
        writer.write(first + client.send(request) + client.send(h11.EndOfMessage()))
        event = client.next_event()
        while event is h11.NEED_DATA or isinstance(event, h11.InformationalResponse):
            if event is h11.NEED_DATA:
                client.receive_data(await reader.read(MAX_HEAD))
            event = client.next_event()
        if not isinstance(event, h11.Response):
            return "no answer in HTTP"
        return "" if event.status_code in WELL else f"HTTP status {event.status_code}"
    except h11.ProtocolError:
        return "no answer in HTTP"
    finally:
        writer.transport.abort()


async def reach(end: End) -> socket.socket:
    """Connect to a target; a port that is refused at 127.0.0.1 is tried at ::1, where many programs listen alone.

    So is one at localhost, which is 127.0.0.1 alone in many files of hosts.

    Raises OSError.
    """
    if end.path:
        return await connect_unix(end.path)
    try:
        return await connect_tcp(end.host, end.port)
    except ConnectionRefusedError:
        if end.host not in OF_EITHER:
            raise
        with suppress(OSError):
            return await connect_tcp(LOOPBACK6, end.port)
        raise


async def connect_unix(path: str) -> socket.socket:
    """Connect to a Unix socket; where as many wait as its listener lets, once one of them was accepted.

    Raises OSError.
    """
    sock = unreserved(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
    left = ATTEMPTS
    try:
        while True:
            try:
                sock.connect(path)  # never under way: asyncio's would take EAGAIN for that, and then for a connection
                return sock
            except BlockingIOError:
                left -= 1
                if not left:
                    raise
            await asyncio.sleep(AGAIN_S)
    except BaseException:
        sock.close()
        raise


def takes_datagrams(hosts: list[str], port: int) -> str:
    """Return the address of a UDP target at which a program of this host listens, so far as that is told, or the first.

    As for TCP a port of 127.0.0.1 may be that of ::1.
    """
    known = [*hosts, LOOPBACK6] if LOOPBACK in hosts else hosts
    found = (host for host in known if _is_local(host) and _listening(host, port, udp=True))
    return next(found, hosts[0]) if len(known) > 1 else hosts[0]


def in_words(error: OSError | TimeoutError) -> str:
    """Return why a target did not answer, without the system's number."""
    if error.errno is None:
        return NO_ANSWER if isinstance(error, TimeoutError) else str(error)
    return os.strerror(error.errno).lower() if error.errno > 0 else str(error.strerror)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _unix_listening(path: str) -> bool:
    """Return whether a Unix socket that listens was bound to a path (man 5 proc_net)."""
    try:
        with open("/proc/net/unix", "rb") as table:
            lines = [line.split(maxsplit=7) for line in table]
    except OSError:
        return False
    wanted = os.fsencode(path)
    return any(line[-1].rstrip(b"\n") == wanted and int(line[3], 16) & SO_ACCEPTCON for line in lines if len(line) == 8)


@lru_cache(maxsize=1)
def _kernel_tells() -> bool:
    """Return whether the kernel tells of listeners; one that cannot says that there is none."""
    with socket.create_server((LOOPBACK, 0)) as known:
        return _listening(LOOPBACK, known.getsockname()[1]) is True


def _listening(host: str, port: int, *, udp: bool = False) -> bool | None:
    """Return whether a socket of this host takes what comes to an address (man 7 sock_diag); None if it is not told."""
    if sys.platform != "linux":
        return None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    address, states = socket.inet_pton(family, host).ljust(16, b"\0"), ANY_STATE if udp else LISTEN_STATE
    ends = struct.pack("!HH16s16s", port, 0, address, bytes(16))
    if udp:  # the kernel has the two ends the other way round there
        ends = struct.pack("!HH16s16s", 0, port, bytes(16), address)
    protocol = socket.IPPROTO_UDP if udp else socket.IPPROTO_TCP
    body = struct.pack("=BBBxI", family, protocol, 0, states) + ends + bytes(4) + ANY_COOKIE
    head = struct.pack("=IHHII", 16 + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, NETLINK_SOCK_DIAG) as asked:
            asked.send(head + body)
            answer = asked.recv(4_096)  # the kernel answers within the send
    except OSError:
        return None
    (kind,) = struct.unpack_from("=H", answer, 4)
    if kind == SOCK_DIAG_BY_FAMILY:
        return True
    refused = kind == NLMSG_ERROR and struct.unpack_from("=i", answer, 16)[0] == -errno.ENOENT
    return False if refused else None
