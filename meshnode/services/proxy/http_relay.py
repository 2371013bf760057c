"""One HTTP request and its response between a client of the proxy and a service: asyncio around ``proxy/http.py``."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import h11

from meshnode.base.limits import MAX_PROXY_HEAD
from meshnode.errors import ConnectionLost, MeshError
from meshnode.sdk.streams import MeshReader, MeshWriter
from meshnode.services.local import Local
from meshnode.services.proxy.http import HttpClient, request_for, response_for
from meshnode.services.splice import OtherEnd, end_by_reset

CHUNK = 1 << 16
LINGER_S = 2.0  # what is still read of a body that the response did not wait for
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
    """Send the request's body on; then wait for the client to go away. Raises ConnectionResetError.

    What the service takes no more is read and dropped: a client that does not read before it has sent all would wait.
    """
    reader, sock = tcp[0], tcp[1].get_extra_info("socket")
    event: object = h11.NEED_DATA
    while not isinstance(event, h11.EndOfMessage):
        event = client.parser.next_event()
        if event is h11.NEED_DATA:
            data = await reader.read(CHUNK)
            if not data:
                raise ConnectionResetError("the client went away within its request")
            client.parser.receive_data(data)
        elif isinstance(event, h11.Data | h11.EndOfMessage):
            with suppress(MeshError):  # it may have answered; where the stream was lost, the response says so
                writer.write(service.send(_part_for(event)) or b"")
                await writer.drain()
    while await reader.read(CHUNK):
        pass  # another request behind this one, which Connection: close says is not answered
    await OtherEnd(sock).gone()  # the end of its direction says that it sends no more, and not that it has gone


def _part_for(event: h11.Data | h11.EndOfMessage) -> h11.Event:
    return h11.Data(data=event.data) if isinstance(event, h11.Data) else h11.EndOfMessage(headers=event.headers)


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


async def end_behind_answer(client: HttpClient, tcp: Local) -> None:
    """End a client's connection behind an answer; first read what is under way of a body that was not waited for.

    A kernel that has unread bytes sends a reset, which would overtake the answer.
    """
    reader, writer = tcp
    end_by_reset(writer.get_extra_info("socket"), False)
    try:
        if not client.is_read:
            with suppress(OSError):  # a timeout too
                writer.write_eof()
                async with asyncio.timeout(LINGER_S):
                    while await reader.read(CHUNK):
                        pass
    finally:
        writer.close()
