"""The node's end of a flow of datagrams that the control socket carries: a frame is a datagram behind one zero byte."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress

from meshnode.base.limits import MAX_FLOW_DATAGRAM
from meshnode.base.value import frozen
from meshnode.daemon.frames import BROKEN, END, LENGTH, WHOLE, frame
from meshnode.errors import FlowClosed, MeshError
from meshnode.sdk.datagrams import Datagrams

READ = 1 << 16  # bytes read at once
FIRST = b"\0"  # of each frame, for a datagram may be empty and a frame may not


@frozen
class CarriedFlow:
    """A flow of datagrams that a handler hands to the control socket, as the last of its results."""

    flow: Datagrams
    ended: asyncio.Event | None = None  # is set when it is carried no longer

    def accept(self) -> None:
        """Tell the peer that its flow is served."""
        self.flow.accept()

    def drop(self) -> None:
        """Reset the flow, which is not carried."""
        self.flow.reset()
        if self.ended is not None:
            self.ended.set()


async def carry_flow(sock: socket.socket, sent: bytes, carried: CarriedFlow) -> None:
    """Carry datagrams both ways until either side closes the flow, and tell the client how it ended.

    Those that the client does not read wait in the flow, which drops the oldest. ``sent`` was read of the client
    already.
    """
    flow = carried.flow
    up = asyncio.ensure_future(_from_client(sock, sent, flow))
    down = asyncio.ensure_future(_to_client(sock, flow))
    try:
        await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        if down.done():
            await down
            await asyncio.get_running_loop().sock_sendall(sock, WHOLE)
        else:
            await up
    except MeshError as error:
        last = BROKEN + json.dumps(error.to_json()).encode() + b"\n"
        with suppress(OSError):  # the client has gone
            await asyncio.get_running_loop().sock_sendall(sock, last)
    except OSError:  # the client has gone
        flow.reset()
    finally:
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)
        flow.close()
        if carried.ended is not None:
            carried.ended.set()


async def _to_client(sock: socket.socket, flow: Datagrams) -> None:
    async for data in flow:
        await asyncio.get_running_loop().sock_sendall(sock, frame(FIRST + data))


async def _from_client(sock: socket.socket, held: bytes, flow: Datagrams) -> None:
    """Send what the client sends, until it closes the flow. Raises OSError: it has gone, or sends what is no frame."""
    while True:
        while len(held) >= LENGTH.size:
            head, size = held[: LENGTH.size], LENGTH.unpack_from(held)[0]
            if head in (END, WHOLE):
                return
            if size > MAX_FLOW_DATAGRAM + len(FIRST):
                raise ConnectionResetError("a frame is longer than a datagram may be")
            end = LENGTH.size + size
            if len(held) < end:
                break
            with suppress(FlowClosed):  # by the peer: the other direction ends then
                flow.send(held[LENGTH.size + len(FIRST) : end])
            held = held[end:]
        more = await asyncio.get_running_loop().sock_recv(sock, READ)
        if not more:
            raise ConnectionResetError("the client has gone")
        held += more
