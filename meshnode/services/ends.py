"""What a service leads to, and what a forward listens at: TCP and Unix sockets of this host, as they are written."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import replace

from meshnode.base.address import parse_host, parse_port
from meshnode.base.value import frozen
from meshnode.errors import ConfigError
from meshnode.identity.node_id import quoted

LOOPBACK = "127.0.0.1"
TARGET_FORM = "write PORT, HOST:PORT, tcp://HOST:PORT, udp://HOST:PORT, unix:PATH or http://HOST:PORT"
RANGE_FORM = "write the same number of ports for each, 256 at most, as in 8000-8010"
MAX_RANGE = 256  # ports
LISTEN_FORM = "write PORT, HOST:PORT, udp://HOST:PORT or unix:PATH"
UDP = "udp://"
UNIX, HTTP_UNIX = "unix:", "http+unix:"
RANGE = re.compile(r"((?!unix:|http\+unix:)(?:.*:)?)([0-9]{1,5})-([0-9]{1,5})", re.ASCII)
MAX_PATH = 107  # bytes of the path of a Unix socket: unix(7), less the zero behind it


@frozen
class End:
    """A TCP port of a host, or with a ``path`` a Unix socket; ``http`` where requests are passed on one by one.

    ``udp`` is a UDP port.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    http: bool = False
    udp: bool = False

    def __str__(self) -> str:
        if self.path:
            return f"{UNIX}{self.path}"
        return f"{UDP if self.udp else ''}{host_port(self.host, self.port)}"

    @property
    def target(self) -> str:
        """The one form in which it is shown as a target."""
        if self.path:
            return f"http+{self}" if self.http else str(self)
        return str(self) if self.udp else f"{'http' if self.http else 'tcp'}://{self}"


def parse_target(text: str) -> End:
    """Parse ``tcp://HOST:PORT``, ``HOST:PORT``, ``PORT`` (of this host), ``unix:PATH``, ``http://`` or ``udp://HOST:PORT``.

    ``http+unix:PATH`` is HTTP at a Unix socket. Raises ConfigError.
    """
    if text.startswith((UNIX, HTTP_UNIX)):
        return replace(_unix(text.removeprefix("http+")), http=text.startswith(HTTP_UNIX))
    scheme, mark, rest = text.partition("://")
    if not mark:
        scheme, rest = "tcp", text
    if scheme not in ("tcp", "http", "udp"):
        raise ConfigError(f"{quoted(text)} is not a target: no {quoted(scheme)} is carried", hint=TARGET_FORM)
    host, colon, port = (rest.removesuffix("/") if scheme == "http" else rest).rpartition(":")
    name, number = parse_host(host), parse_port(port)
    if name is None or not number or bool(colon) != bool(name):
        raise ConfigError(f"{quoted(text)} is not a target", hint=TARGET_FORM)
    return End(name or LOOPBACK, number, http=scheme == "http", udp=scheme == "udp")


def parse_listen(text: str) -> End:
    """Parse ``[HOST]:PORT``, ``PORT`` (loopback when no host is given), ``udp://`` before either, or ``unix:PATH``.

    Raises ConfigError.
    """
    if text.startswith(UNIX):
        return _unix(text)
    udp = text.startswith(UDP)
    host, _, port = text.removeprefix(UDP).rpartition(":")
    name, number = parse_host(host), parse_port(port)
    if name is None or number is None:
        raise ConfigError(f"{quoted(text)} is not a place to listen", hint=LISTEN_FORM)
    return End(name or LOOPBACK, number, udp=udp)


def bound_end(end: End, sock: socket.socket) -> End:
    """Return where a socket listens, for ``end``: with the kernel's port, and a host's name, which may have several
    addresses, as it was written.
    """
    host, port, *_ = sock.getsockname()
    try:
        ipaddress.ip_address(end.host.partition("%")[0])
    except ValueError:
        host = end.host
    return replace(end, host=str(host), port=int(port))


def _unix(text: str) -> End:
    path = text.removeprefix(UNIX).removeprefix("//")
    if not os.path.isabs(path) or "\0" in path:
        raise ConfigError(f"{quoted(text)} has no whole path", hint="write it from the root: unix:/run/app.sock")
    if len(os.fsencode(path)) > MAX_PATH:
        raise ConfigError(
            f"{quoted(text)} is too long for a Unix socket: {MAX_PATH} bytes at most", hint="choose a shorter path"
        )
    return End(path=os.path.normpath(path))


def host_port(host: str, port: int) -> str:
    """Return ``HOST:PORT``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def expanded(texts: Sequence[str]) -> list[tuple[int, tuple[str, ...]]]:
    """Return the targets or listeners of each port of a range, ``tcp://HOST:FIRST-LAST``, with the first one's port.

    Where there is no range, that is one, of port 0. Raises ConfigError.
    """
    found = [RANGE.fullmatch(text) for text in texts]
    if not any(found):
        return [(0, tuple(texts))]
    ranges = [(m[1], range(int(m[2]), int(m[3]) + 1)) for m in found if m is not None]
    sizes = {len(ports) for _, ports in ranges}
    if len(ranges) < len(texts) or len(sizes) > 1 or not 0 < len(ranges[0][1]) <= MAX_RANGE:
        raise ConfigError(f"{quoted(' '.join(texts))} has no ranges of ports that fit", hint=RANGE_FORM)
    several = zip(*(ports for _, ports in ranges), strict=True)
    before = [start for start, _ in ranges]
    return [(ports[0], tuple(f"{a}{b}" for a, b in zip(before, ports, strict=True))) for ports in several]
