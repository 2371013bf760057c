"""TCP through the mesh: half-close both ways, back-pressure end to end, bounded buffers."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress

from meshnode.base.refusals import listen_refusal
from meshnode.errors import AddressInUse, ConfigError, MeshError
from meshnode.identity.node_id import NodeId, quoted
from meshnode.sdk.node import Node, runtime_of
from meshnode.sdk.streams import MeshReader, MeshWriter

log = logging.getLogger("meshnode.services")

LOOPBACK = "127.0.0.1"
TARGET_FORM = "write PORT, HOST:PORT or tcp://HOST:PORT"
CHUNK = 1 << 16
CONNECT_TIMEOUT_S = 10.0
RECOVER_S = 2.0  # between looks whether a target that did not answer does so now
KEEP_ALIVE_S = 15
GONE_S = 5.0  # between looks whether the other end of a half-closed connection is there
TCP_CLOSE = 7  # linux/tcp_states.h
MAX_CLIENTS = 1024  # connections one forward holds at once


async def _pump(reader: MeshReader | asyncio.StreamReader, writer: MeshWriter | asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def end_by_reset(writer: asyncio.StreamWriter, reset: bool) -> None:
    """Have the kernel end a connection by RST, or by FIN again; it does so too when this process is killed."""
    with suppress(OSError):  # over already
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", reset, 0))


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    """Have the kernel ask whether the other end is there (tcp(7)); where it cannot, a dead one is met by writing."""
    sock = writer.get_extra_info("socket")
    with suppress(OSError, AttributeError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEP_ALIVE_S)


def _check_there(writer: asyncio.StreamWriter) -> None:
    """Raise ConnectionResetError when the kernel has given the connection up: no reader is told after an EOF."""
    if sys.platform == "linux":
        state = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        if state[0] == TCP_CLOSE:
            raise ConnectionResetError("the other end of a half-closed connection has gone")


def abort(writer: asyncio.StreamWriter) -> None:
    """End a connection by RST: its other end must not take what it got for the whole."""
    end_by_reset(writer, True)
    writer.transport.abort()


async def splice(tcp: tuple[asyncio.StreamReader, asyncio.StreamWriter], mesh: tuple[MeshReader, MeshWriter]) -> None:
    """Carry bytes both ways until both directions have ended.

    An end of one direction is passed on as such (half-close). Any other end than that of both, an error or the
    cancellation of this task, resets both sides; errors are logged and not raised. Each direction holds at most
    ``CHUNK`` bytes beside the buffers of both ends.
    """
    end_by_reset(tcp[1], True)
    _keep_alive(tcp[1])
    is_whole = False
    try:
        async with asyncio.TaskGroup() as group:
            back = group.create_task(_pump(mesh[0], tcp[1]))
            await _pump(tcp[0], mesh[1])
            while not back.done():  # asyncio watches no socket whose end was read: look whether it is there at all
                await asyncio.wait([back], timeout=GONE_S)
                _check_there(tcp[1])
        await mesh[1].wait_closed()
        await mesh[1].drain()  # raises when the connection was lost before the peer had everything
        is_whole = True
    except* (MeshError, OSError) as error:
        log.debug("a spliced connection ended: %s", error.exceptions[0])
    finally:
        if is_whole:
            end_by_reset(tcp[1], False)
            tcp[1].close()
            mesh[1].close()
        else:
            mesh[1].reset()
            abort(tcp[1])


def parse_target(text: str) -> tuple[str, int]:
    """Parse ``tcp://HOST:PORT``, ``HOST:PORT`` or ``PORT`` (of this host); raises ConfigError."""
    scheme, mark, _ = text.partition("://")
    if (mark and scheme != "tcp") or text.startswith("unix:"):
        raise ConfigError(
            f"{quoted(text)} is not a target: only TCP is carried, no {scheme.partition(':')[0]}", hint=TARGET_FORM
        )
    host, colon, port = text.removeprefix("tcp://").rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536 or bool(colon) != bool(host):
        raise ConfigError(f"{quoted(text)} is not a target", hint=TARGET_FORM)
    return host.strip("[]") or LOOPBACK, int(port)


def parse_listen(text: str) -> tuple[str, int]:
    """Parse ``[HOST]:PORT`` or ``PORT`` (loopback when no host is given); raises ConfigError."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{quoted(text)} is not a place to listen", hint="write PORT or HOST:PORT")
    return host.strip("[]") or LOOPBACK, int(port)


def host_port(host: str, port: int) -> str:
    """Return ``HOST:PORT``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Expose:
    """A TCP target served under a name."""

    def __init__(
        self,
        node: Node,
        name: str,
        target: str,
        allow: tuple[str, ...],
        announce: bool | None = None,
        meta: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.allow, self.announce, self.meta = name, allow, announce, dict(meta or {})
        self._where = parse_target(target)
        self.target = f"tcp://{host_port(*self._where)}"
        self._node = node
        self._service = node.serve(name, self._handle, allow=allow, accept=False, announce=announce, meta=meta)

    async def _handle(self, reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        """Accept once the target has: a caller by name is then sent on to another instance when it does not answer."""
        try:
            tcp = await asyncio.wait_for(asyncio.open_connection(*self._where), CONNECT_TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            log.warning("service %s: %s does not answer: %s", self.name, self.target, error)
            if self._service.healthy:
                self._service.update(healthy=False)
                runtime_of(self._node).tasks.spawn(self._recover())
            return
        writer.accept()
        await splice(tcp, (reader, writer))

    async def _recover(self) -> None:
        """Announce the service as well again once its target answers."""
        while not self._node.is_closed and self._service.is_served:
            await asyncio.sleep(RECOVER_S)
            try:
                _, tcp = await asyncio.wait_for(asyncio.open_connection(*self._where), CONNECT_TIMEOUT_S)
            except (OSError, TimeoutError):
                continue
            tcp.close()
            self._service.update(healthy=True)
            return

    def close(self) -> None:
        """Withdraw the service."""
        self._service.close()


def is_loopback(host: str) -> bool:
    """Return True for an address that only this host reaches."""
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


class Forward:
    """A local TCP listener whose connections go to a service: of one node, or (``peer`` None) of any that offers it."""

    def __init__(self, node: Node, listen: str, peer: NodeId | str | None, service: str, sticky: bool = False) -> None:
        self.listen, self.peer, self.service, self.sticky = listen, peer, service, sticky
        self._node = node
        self._server: asyncio.Server | None = None
        self._tasks: dict[asyncio.Task[None], None] = {}

    @property
    def to(self) -> str:
        """The service that it goes to, as it was written."""
        return self.service if self.peer is None else f"{self.peer}/{self.service}"

    async def start(self) -> tuple[str, int]:
        """Listen, and return the bound host and port.

        Port 0 is replaced by the kernel's choice. Raises AddressInUse (also for an address that this host does not
        have) and ConfigError.
        """
        host, port = parse_listen(self.listen)
        try:
            self._server = await asyncio.start_server(self._client, host, port, backlog=MAX_CLIENTS)
        except OSError as error:
            reason, hint = listen_refusal(error, port)
            raise AddressInUse(f"cannot listen on {host_port(host, port)}: {reason}", hint=hint) from error
        bound = self._server.sockets[0].getsockname()
        if not is_loopback(bound[0]):
            log.warning("forward %s opens %s to every host that reaches this one", host_port(*bound[:2]), self.to)
        return str(bound[0]), int(bound[1])

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._tasks) >= MAX_CLIENTS:
            abort(writer)
            return
        end_by_reset(writer, True)
        self._tasks[task] = None
        try:
            if self.peer is None:
                mesh = await self._node.open_any(self.service, sticky=self.sticky)
            else:
                mesh = await self._node.open(self.peer, self.service)
            await splice((reader, writer), mesh)
        except MeshError as error:
            log.warning("forward %s to %s: %s (%s)", self.listen, self.to, error, error.code)
            abort(writer)
        except asyncio.CancelledError:
            abort(writer)  # the forward is being closed
        finally:
            self._tasks.pop(task, None)

    async def close(self) -> None:
        """Stop listening and drop its connections.

        They are aborted, not closed: the programs at both ends see a reset.
        """
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)
