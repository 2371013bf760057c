"""A client of the proxy in either protocol, behind one seam: bytes until it has asked, an answer, and the carrying."""

from __future__ import annotations

import socket
from typing import Protocol

from h11 import RemoteProtocolError

from meshnode.base.log_lines import rated_logger
from meshnode.errors import MeshError, Unsupported
from meshnode.sdk.streams import MeshStream
from meshnode.services.local import connection
from meshnode.services.proxy.answers import answer_to
from meshnode.services.proxy.destination import address_of
from meshnode.services.proxy.host_guard import HostGuard
from meshnode.services.proxy.http import BadRequest, HttpClient
from meshnode.services.proxy.http_relay import end_behind_answer, relay
from meshnode.services.proxy.socks5 import VERSION, VERSION_4, Command, Handshake, Reply, reply
from meshnode.services.splice import Before, end_by_reset, splice

log = rated_logger("meshnode.proxy")


class Client(Protocol):
    """A client's side of a connection."""

    def receive(self, data: bytes) -> None:
        """Take what it has sent."""

    def to_send(self) -> bytes:
        """Return what it is to be sent meanwhile."""

    @property
    def wanted(self) -> tuple[str, int] | None:
        """The host and the port that it has asked for; None until then.

        Raises MeshError: there is nothing to ask.
        """

    def refused(self, error: MeshError) -> bytes:
        """Return the answer to a request that leads nowhere."""

    async def carry(self, sock: socket.socket, mesh: MeshStream) -> None:
        """Tell it that it is connected, carry its bytes until the end, and close it. Errors are not raised."""


def client_of(first: int) -> Client:
    """Return the client's side by the first byte that it has sent."""
    return SocksClient() if first in (VERSION, VERSION_4) else WebClient()


class SocksClient:
    """A client that speaks SOCKS5."""

    def __init__(self) -> None:
        self._handshake = Handshake()

    def receive(self, data: bytes) -> None:
        """As ``Client``."""
        self._handshake.receive(data)

    def to_send(self) -> bytes:
        """As ``Client``."""
        output, self._handshake.output = self._handshake.output, bytearray()
        return bytes(output)

    @property
    def wanted(self) -> tuple[str, int] | None:
        """As ``Client``."""
        if self._handshake.error:
            raise Unsupported(self._handshake.error)
        request = self._handshake.request
        if request is None:
            return None
        if request.command not in (Command.CONNECT, Command.UDP_ASSOCIATE):
            raise Unsupported(f"command {request.command} of SOCKS5 is not supported")
        return request.host, request.port

    @property
    def is_for_datagrams(self) -> bool:
        """True when it has asked for a way for its datagrams; the port of ``wanted`` is where it sends them from."""
        request = self._handshake.request
        return request is not None and request.command == Command.UDP_ASSOCIATE

    def refused(self, error: MeshError) -> bytes:
        """As ``Client``."""
        if self._handshake.request is None:
            return b""  # it has its answer
        code = Reply.COMMAND_NOT_SUPPORTED if isinstance(error, Unsupported) else answer_to(error).socks
        return reply(code)

    async def carry(self, sock: socket.socket, mesh: MeshStream) -> None:
        """As ``Client``."""
        assert self._handshake.request is not None
        await _tunnel(self._handshake.request.host, (reply(Reply.SUCCEEDED), self._handshake.rest), sock, mesh)


class WebClient:
    """A client that speaks HTTP."""

    def __init__(self) -> None:
        self._http = HttpClient()

    def receive(self, data: bytes) -> None:
        """As ``Client``."""
        self._http.receive(data)

    def to_send(self) -> bytes:
        """As ``Client``."""
        return b""

    @property
    def wanted(self) -> tuple[str, int] | None:
        """As ``Client``."""
        if self._http.error is not None:
            raise self._http.error
        target = self._http.target
        return (target.host, target.port) if target is not None else None

    def refused(self, error: MeshError) -> bytes:
        """As ``Client``."""
        return self._http.refused(error)

    async def carry(self, sock: socket.socket, mesh: MeshStream) -> None:
        """As ``Client``."""
        target = self._http.target
        assert target is not None
        if not target.path:
            await _tunnel(target.host, self._http.tunnelled(), sock, mesh)
            return
        is_whole = is_answered = False
        end_by_reset(sock, True)
        tcp = await connection(sock)
        try:
            await relay(self._http, tcp, mesh)
            is_whole, is_answered = self._http.is_read, True
        except (MeshError, RemoteProtocolError) as error:
            answer = self._http.refused(error if isinstance(error, MeshError) else BadRequest(f"no body: {error}"))
            tcp[1].write(answer)
            is_answered = bool(answer)
        except OSError as error:
            log.debug("a client of the proxy is over: %r", error)
        finally:
            if is_whole:
                mesh.writer.close()
            else:
                mesh.writer.reset()
            if not is_answered:
                tcp[1].transport.abort()
        if is_answered:
            await end_behind_answer(self._http, tcp)


async def _tunnel(host: str, sent: tuple[bytes, bytes], sock: socket.socket, mesh: MeshStream) -> None:
    """Carry bytes behind an answer, and behind what the client has sent ahead of it."""
    guard = HostGuard() if address_of(host) is not None else None
    await splice(sock, mesh, before=Before(*sent, guard))
