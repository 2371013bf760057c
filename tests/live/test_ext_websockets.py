"""The client of the library websockets over mesh streams."""

from __future__ import annotations

import asyncio

import pytest
import websockets

import meshnode
from meshnode.ext import asgi
from meshnode.ext.websockets import connect
from tests.conftest import MakeNode
from tests.given_time import wait_for
from tests.live.asgi_app import LINES, App
from tests.live.ext_mesh import Pair, pair


@pytest.fixture
async def nodes(make_node: MakeNode) -> Pair:
    return await pair(make_node)


async def test_messages_go_on_while_both_ends_move(nodes: Pair) -> None:
    async with (
        asgi.serve(nodes.there, App().app, "web", allow=[nodes.here.id]),
        connect(nodes.here, f"ws://web.{nodes.there.id}.mesh/ws") as socket,
        nodes.moving(),
    ):
        assert await socket.recv() == f"{nodes.here.id} {nodes.here.id}"
        assert socket.remote_address[0] == str(nodes.there.id)
        for number in range(LINES):
            await socket.send(str(number))
            assert await socket.recv() == str(number)
            await asyncio.sleep(0.01)


async def test_a_large_message_is_held_back_and_arrives_whole(nodes: Pair) -> None:
    text = "x" * 4_000_000
    async with (
        asgi.serve(nodes.there, App().app, "web", allow="any", ws_max_size=5_000_000),
        connect(nodes.here, "ws://web.there.mesh/ws", max_size=5_000_000) as socket,
    ):
        await socket.recv()
        await socket.send(text)
        assert await socket.recv() == text


async def test_a_lost_connection_is_no_clean_end(nodes: Pair) -> None:
    async with (
        asgi.serve(nodes.there, App().app, "web", allow="any"),
        connect(nodes.here, "ws://web.there.mesh/ws") as socket,
    ):
        await socket.recv()
        (await nodes.here.connect("there")).close()
        with pytest.raises(websockets.ConnectionClosedError):
            await wait_for(socket.recv(), 10)


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("wss://web.there.mesh/", meshnode.ConfigError),
        ("ws://web.there.mesh/", meshnode.ServiceNotFound),
        ("ws://example.org/", meshnode.InvalidId),
    ],
)
async def test_what_cannot_be_reached_is_an_error_of_the_mesh(nodes: Pair, uri: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        await connect(nodes.here, uri)
