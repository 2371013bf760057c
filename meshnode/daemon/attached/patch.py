"""``meshnode.patch``: sockets of Python programs that know nothing of the mesh reach ``SERVICE.NODE.mesh``.

Two functions of the module ``socket`` are others while it is in force. ``getaddrinfo`` gives a host in ``.mesh`` back
as its own address, and ``connect``, which is given that, asks a proxy that the running node of a home lends. What the
standard library does with hosts, and what is built on it, comes through these two.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import weakref
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from meshnode.config import expanded
from meshnode.daemon.attached.control import error_of
from meshnode.daemon.client import hold
from meshnode.daemon.requests.programs import ProxyWhile
from meshnode.errors import ConnectionLost, MeshError
from meshnode.identity.node_id import MESH_SUFFIX

ANSWER_S = 15.0  # for a socket that does not block: the node is on this host, and dials and waits no longer
MAX_ANSWER = 1 << 14  # bytes
END = b"\r\n\r\n"
V4_IN_V6 = "::ffff:"  # by which a socket of IPv6 reaches a listener of IPv4
DETAILS = b'details="'
NAMES = ("getaddrinfo",)  # of the module
METHODS = ("connect", "connect_ex")  # of its class


class Patch:
    """A patch in force, as ``patch`` returns it. ``with`` undoes it at the end, and so does ``undo``."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lending = threading.Lock()
        self._release: weakref.finalize[[], Patch] | None = None
        self._lend(None)
        self._before: dict[str, Any] = {name: getattr(socket, name) for name in NAMES}
        self._before |= {name: getattr(socket.socket, name) for name in METHODS}
        self._is_undone = False
        patch = self

        def connect(sock: socket.socket, to: Any, /) -> None:
            patch._connect(sock, to)

        def connect_ex(sock: socket.socket, to: Any, /) -> int:
            return patch._connect_ex(sock, to)

        self._set({"getaddrinfo": self._getaddrinfo, "connect": connect, "connect_ex": connect_ex})

    def _lend(self, timeout: float | None) -> None:
        """Have the node lend a proxy, as long as this connection is open. Raises MeshError."""
        asked, told = hold(self._home, ProxyWhile(), timeout)
        if self._release is not None:
            self._release()
        self._asked, self._release = asked, weakref.finalize(self, asked.close)
        host, _, port = told["listen"].rpartition(":")
        self._proxy = host, int(port)

    def _set(self, functions: dict[str, Any]) -> None:
        for name in NAMES:
            setattr(socket, name, functions[name])
        for name in METHODS:
            setattr(socket.socket, name, functions[name])

    def undo(self) -> None:
        """Let sockets be as they were before.

        Connections that are open go on. Safe to call twice.
        """
        if not self._is_undone:
            self._is_undone = True
            self._set(self._before)

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.undo()

    # ---- what sockets do now

    def _getaddrinfo(
        self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[Any]:
        """Return a host of the mesh as its own address, for streams; any other is looked up as before."""
        if not is_mesh(host) or flags & socket.AI_NUMERICHOST:
            found: list[Any] = self._before["getaddrinfo"](host, port, family, type, proto, flags)
            return found
        if type not in (0, socket.SOCK_STREAM) or proto not in (0, socket.IPPROTO_TCP):
            raise socket.gaierror(socket.EAI_NONAME, f"{_text(host)} is reached by TCP alone")
        name, number = _host(host), _port(port)
        families = {socket.AF_INET: (name, number), socket.AF_INET6: (name, number, 0, 0)}
        wanted = socket.AddressFamily(family or socket.AF_INET)
        if wanted not in families:
            raise socket.gaierror(socket.EAI_FAMILY, f"{name} has no address of that family")
        return [(wanted, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", families[wanted])]

    def _connect(self, sock: socket.socket, to: Any) -> None:
        """Connect a socket; to a host of the mesh through the proxy. Raises OSError, with the mesh's error as cause."""
        if sock.type != socket.SOCK_STREAM or not isinstance(to, tuple) or not is_mesh(to[0]):
            self._before["connect"](sock, to)
            return
        where = f"{_host(to[0])}:{int(to[1])}"
        timeout = sock.gettimeout()
        sock.settimeout(ANSWER_S if timeout == 0 else timeout)
        try:
            self._reach_proxy(sock)
            said = f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n\r\n".encode("ascii", "replace")
            socket.socket.sendall(sock, said)  # one of TLS that is not connected would begin with that
            _read_answer(sock, _text(to[0]))
        finally:
            sock.settimeout(timeout)

    def _reach_proxy(self, sock: socket.socket) -> None:
        """Connect a socket to the proxy. Raises OSError."""
        try:
            self._before["connect"](sock, _as_seen_from(sock, self._lent()))
            return
        except ConnectionRefusedError as error:
            if error.__cause__ is not None:
                raise  # no node runs
        proxy = self._lent()  # the node has stopped in this moment
        with suppress(ConnectionAbortedError):  # by which Linux ends the first attempt of a socket with a timeout
            self._before["connect"](sock, _as_seen_from(sock, proxy))
            return
        self._before["connect"](sock, _as_seen_from(sock, proxy))

    def _lent(self) -> tuple[str, int]:
        """Return where the proxy listens: of a node that was started again another, and that port may be any program's.

        Raises OSError.
        """
        with self._lending:
            asked = select.poll()
            asked.register(self._asked, select.POLLIN)
            if asked.poll(0):  # the node says nothing more, so it has stopped
                try:
                    self._lend(ANSWER_S)
                except MeshError as error:
                    raise _as_os_error(error) from error
            return self._proxy

    def _connect_ex(self, sock: socket.socket, to: Any) -> int:
        if sock.type != socket.SOCK_STREAM or not isinstance(to, tuple) or not is_mesh(to[0]):
            number: int = self._before["connect_ex"](sock, to)
            return number
        try:
            self._connect(sock, to)
        except OSError as error:
            return error.errno or errno.ECONNREFUSED
        return 0


def is_mesh(host: Any) -> bool:
    """Return whether a host, text or bytes, is a name in ``.mesh``."""
    return isinstance(host, str | bytes) and _text(host).lower().removesuffix(".").endswith(MESH_SUFFIX)


def _text(host: str | bytes) -> str:
    return host.decode("ascii", "replace") if isinstance(host, bytes) else host


def _host(host: str | bytes) -> str:
    """Return a host as text. Raises gaierror for one with a space or a control character: it would be two requests."""
    text = _text(host)
    if " " in text or not text.isprintable():
        raise socket.gaierror(socket.EAI_NONAME, f"{text[:80]!r} is no host")
    return text


def _as_seen_from(sock: socket.socket, proxy: tuple[str, int]) -> tuple[str, int]:
    host, port = proxy
    return (f"{V4_IN_V6}{host}", port) if sock.family == socket.AF_INET6 else proxy


def _port(port: Any) -> int:
    """Return a port by its number or its name. Raises gaierror."""
    text = _text(port) if isinstance(port, str | bytes) else str(port or 0)
    if text.isdecimal():
        return int(text)
    try:
        return socket.getservbyname(text, "tcp")
    except OSError as error:
        raise socket.gaierror(socket.EAI_SERVICE, f"no port is called {text}") from error


def _read_answer(sock: socket.socket, host: str) -> None:
    """Read the proxy's answer, and not one byte behind it. Raises OSError: it refused."""
    receive = partial(socket.socket.recv, sock)  # as the request was sent
    head = bytearray()
    while not head.endswith(END):
        byte = receive(1)
        if not byte or len(head) > MAX_ANSWER:
            raise ConnectionResetError(errno.ECONNRESET, f"the node stopped before {host} was reached")
        head += byte
    if head.split(b" ", 2)[1] == b"200":
        return
    body = bytearray()
    while len(body) < MAX_ANSWER and (more := receive(MAX_ANSWER)):
        body += more
    message, _, hint = body.decode("utf-8", "replace").strip().partition("\nhint: ")
    code = head.partition(DETAILS)[2].partition(b'"')[0].decode()
    error = error_of({"error": {"code": code, "message": message, "hint": hint}})
    raise _as_os_error(error) from error


def _as_os_error(error: MeshError) -> OSError:
    """Return an error of the mesh as programs know them: of sockets, with a number."""
    kinds: tuple[tuple[type[Exception], type[OSError], int], ...] = (
        (LookupError, socket.gaierror, socket.EAI_NONAME),
        (ValueError, socket.gaierror, socket.EAI_NONAME),
        (PermissionError, PermissionError, errno.EACCES),
        (TimeoutError, TimeoutError, errno.ETIMEDOUT),
        (ConnectionLost, ConnectionResetError, errno.ECONNRESET),
    )
    for family, kind, number in kinds:
        if isinstance(error, family):
            return kind(number, error.message)
    return ConnectionRefusedError(errno.ECONNREFUSED, error.message)


def patch(home: str | os.PathLike[str] | None = None) -> Patch:
    """Let sockets of this program reach hosts in ``.mesh``, until it ends or ``undo`` is called.

    ``socket.create_connection``, ``socket.socket.connect`` and ``getaddrinfo``, and with them http.client, urllib,
    requests, database drivers and asyncio, take ``SERVICE.NODE.mesh`` and ``NODE.mesh`` for a host, as ``meshnode
    proxy`` does. Other hosts, and other kinds of sockets, are as before. Errors are those of sockets, with the mesh's
    as their cause. ``getpeername`` of such a socket is the node's proxy. A socket that does not block blocks until the
    service has accepted it. A node that was started again is found by the next connection.

    Args:
        home: The home of a running node; by default ``MESHNODE_HOME``, else ``~/.meshnode``.

    Returns:
        The patch; ``with`` undoes it at the end.

    Raises:
        NotRunning: No node runs in this home.
        ConfigError: This user has no home directory.

    Example:

        with meshnode.patch():
            print(urllib.request.urlopen("http://web.laptop.mesh/").read())
    """
    chosen = home if home is not None else os.environ.get("MESHNODE_HOME") or "~/.meshnode"
    return Patch(expanded(Path(chosen)))
