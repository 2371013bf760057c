"""The listener's end of a tunnel's TLS, against a client's of the same library."""

from __future__ import annotations

import asyncio
import gc
import ssl
import tracemalloc
from typing import Any

import pytest

from meshnode.base.metrics import Metrics
from meshnode.base.path import ViaTunnel
from meshnode.identity.keys import Identity
from meshnode.runtime.acceptor import Accepted
from meshnode.runtime.tunnel_tls import RECORD, TlsEnd, client_context, server_context
from meshnode.runtime.websocket import WebSockets, _Incoming

MEMORY = 16_000  # bytes of Python's own of a connection at rest; an event loop's has 262,144 for its reads alone


class Client:
    """A client's end, without a socket too."""

    def __init__(self) -> None:
        self._read, self._written = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client_context().wrap_bio(self._read, self._written, server_hostname="x.mesh")

    def handshake(self, end: TlsEnd, size: int = 1 << 20) -> None:
        """Do the handshake; the client's bytes come ``size`` at a time."""
        is_done = False
        while not (is_done and end.is_open):
            try:
                self.tls.do_handshake()
                is_done = True
            except ssl.SSLWantReadError:
                pass
            assert self.pass_on(end, size) == b""
            self.take(end.send(b""))

    def pass_on(self, end: TlsEnd, size: int = 1 << 20) -> bytes:
        """Hand over what was written; return what ``end`` reads in it."""
        data = self.written()
        return b"".join(end.receive(data[at : at + size]) for at in range(0, len(data), size))

    def written(self) -> bytes:
        """Return what was written."""
        return self._written.read()

    def take(self, data: bytes) -> None:
        """Take what came from the other end."""
        self._read.write(data)

    def read(self) -> bytes:
        """Return all that came."""
        found = b""
        try:
            while piece := self.tls.read(1 << 20):
                found += piece
        except ssl.SSLWantReadError:
            pass
        return found


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return server_context(tmp_path_factory.mktemp("tls") / "tunnel.pem")


@pytest.mark.parametrize("size", [1, 100, 1 << 20])
def test_what_comes_in_pieces_of_any_size_is_read(context: ssl.SSLContext, size: int) -> None:
    client, end = Client(), TlsEnd(context)
    client.handshake(end, size)
    for data in (b"x", bytes(3 * RECORD + 1)):
        client.tls.write(data)
        assert client.pass_on(end, size) == data
        client.take(end.send(data))
        assert client.read() == data


def test_what_comes_with_the_end_of_the_handshake_is_read(context: ssl.SSLContext) -> None:
    client, end = Client(), TlsEnd(context)
    for _ in range(2):
        try:
            client.tls.do_handshake()
            client.tls.write(b"at once")
        except ssl.SSLWantReadError:
            client.pass_on(end)
            client.take(end.send(b""))
    assert client.pass_on(end) == b"at once"


def test_each_end_may_say_that_no_more_follows(context: ssl.SSLContext) -> None:
    client, end = Client(), TlsEnd(context)
    client.handshake(end)
    client.take(end.end())
    assert client.tls.read() == b""
    client.tls.unwrap()
    assert client.pass_on(end) == b""
    assert not end.is_open


def test_what_is_no_tls_is_an_error_and_an_end_before_the_handshake_none(context: ssl.SSLContext) -> None:
    end = TlsEnd(context)
    assert end.end() == b""
    with pytest.raises(ssl.SSLError):
        end.receive(b"GET / HTTP/1.1\r\n\r\n")


def test_a_connection_at_rest_has_no_buffer_of_its_own(context: ssl.SSLContext) -> None:
    def connection() -> tuple[Client, TlsEnd]:
        client, end = Client(), TlsEnd(context)
        client.handshake(end)
        return client, end

    connection()
    gc.collect()
    tracemalloc.start()
    try:
        connections = [connection() for _ in range(10)]
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < MEMORY * len(connections)
    finally:
        tracemalloc.stop()


class Wire(asyncio.Transport):
    """The socket of an accepted connection: nothing goes on."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes for the client."""


async def test_records_of_one_byte_are_parsed_together(context: ssl.SSLContext) -> None:
    client, end = Client(), TlsEnd(context)
    client.handshake(end)
    never: Any = None
    tunnels = WebSockets(asyncio.get_running_loop(), never, never, never, Accepted(Metrics()))
    incoming: Any = _Incoming(tunnels, ViaTunnel("", "192.0.2.1", 1), Identity.generate().id, end)
    incoming.connection_made(Wire())
    parsed: list[bytes] = []
    incoming._websocket.receive_data = parsed.append
    request = b"GET / HTTP/1.1\r\nHost: x\r\n"
    for byte in request:
        client.tls.write(bytes([byte]))
    incoming.data_received(client.written())
    assert parsed == [request]
    incoming.connection_lost(None)
