"""One HTTP request and its response between a client of the proxy and a service: asyncio around ``proxy/http.py``."""

from __future__ import annotations

import asyncio
from asyncio.trsock import TransportSocket

import h11

from meshnode.base.limits import MAX_PROXY_HEAD
from meshnode.errors import ConnectionLost
from meshnode.sdk.streams import MeshReader, MeshWriter
from meshnode.services.local import Local
from meshnode.services.proxy.http import HttpClient, request_for, response_for
from meshnode.services.splice import OtherEnd

CHUNK = 1 << 16
HALF_CLOSED_S = 10.0  # for a response to begin where the client has ended its direction
TARGET_GONE = "the service ended in the middle of a response, or sent none"


async def relay(client: HttpClient, tcp: Local, mesh: tuple[MeshReader, MeshWriter]) -> None:
    """Send a request on and its response back, bodies as they come.

    Raises ConnectionLost when the service's response is none or ends early, ConnectionError when the client has gone
    before, MeshError of the stream, and h11.RemoteProtocolError when the client's body is malformed.
    """
    assert client.request is not None
    assert client.target is not None
    service = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_PROXY_HEAD)
    mesh[1].write(service.send(request_for(client.request, client.target)) or b"")
    up = asyncio.ensure_future(_send_body(client, service, tcp, mesh[1]))
    down = asyncio.ensure_future(_send_response(client, service, mesh[0], tcp[1]))
    try:
        await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        if not down.done():
            up.result()  # raises: the client has gone, or sent what is no body
        await down
    finally:
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)


async def _send_body(client: HttpClient, service: h11.Connection, tcp: Local, writer: MeshWriter) -> None:
    """Send the request's body on; then wait for the client to go away. Raises ConnectionResetError."""
    reader, sock = tcp[0], tcp[1].get_extra_info("socket")
    while True:
        event = client.parser.next_event()
        if event is h11.NEED_DATA:
            data = await reader.read(CHUNK)
            if not data:
                raise ConnectionResetError("the client went away within its request")
            client.parser.receive_data(data)
        elif isinstance(event, h11.Data):
            writer.write(service.send(h11.Data(data=event.data)) or b"")
            await writer.drain()
        elif isinstance(event, h11.EndOfMessage):
            writer.write(service.send(h11.EndOfMessage(headers=event.headers)) or b"")
            break
    while await reader.read(CHUNK):
        pass  # another request behind this one, which Connection: close says is not answered
    await _until_gone(client, sock)


async def _until_gone(client: HttpClient, sock: TransportSocket) -> None:
    """Wait for what the end of a client's direction says: it has gone, or reads on and sends no more.

    Either looks alike until something is sent, so a response has a while to begin. Raises ConnectionResetError.
    """
    await asyncio.sleep(HALF_CLOSED_S)
    if client.parser.our_state in (h11.IDLE, h11.SEND_RESPONSE):
        raise ConnectionResetError("the client went away before the response")
    await OtherEnd(sock).gone()


async def _send_response(
    client: HttpClient, service: h11.Connection, reader: MeshReader, writer: asyncio.StreamWriter
) -> None:
    try:
        while not isinstance(event := service.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                service.receive_data(await reader.read(CHUNK))
                continue
            if isinstance(event, h11.ConnectionClosed):
                raise ConnectionLost(TARGET_GONE)
            if isinstance(event, h11.Response | h11.InformationalResponse):
                event = response_for(event)
            assert not isinstance(event, type)
            writer.write(client.parser.send(event) or b"")
            await writer.drain()
    except h11.RemoteProtocolError as error:
        raise ConnectionLost(f"{TARGET_GONE}: {error}") from error
    writer.write(client.parser.send(event) or b"")
    await writer.drain()
