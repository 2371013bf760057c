"""UDP services by their name alone: another instance answers when one refuses, is gone or falls silent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

import pytest

from meshnode import Datagrams, Node, NodeId, NotFound, PolicyDenied
from meshnode.sdk.node import runtime_of
from meshnode.services.registry import ServiceBook
from tests.conftest import MakeNode
from tests.given_time import within

DEADLINE_S = 20.0


@dataclass
class Mesh:
    """A node that asks, and two that answer with their own ids."""

    here: Node
    instances: list[Node]

    def other(self, id: NodeId) -> Node:
        """Return the instance that is not this one."""
        (found,) = [node for node in self.instances if node.id != id]
        return found

    def silence(self, id: NodeId) -> None:
        """Have a node send nothing more, as ``kill -9`` does."""
        (node,) = [node for node in self.instances if node.id == id]
        runtime_of(node).sockets.send = lambda path, datagrams: True  # type: ignore[method-assign]


@pytest.fixture
async def mesh(make_node: MakeNode) -> Mesh:
    here = await make_node(seed_role=True)
    instances = [await make_node(seed=here) for _ in range(2)]
    for node in instances:
        node.serve_datagrams("names", _answering(node.id), allow=["any"])
    await _offered(here, "names")
    return Mesh(here, instances)


async def _offered(here: Node, name: str) -> None:
    async with within(DEADLINE_S):
        while len(await here.find(name)) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def _answering(id: NodeId) -> Callable[[Datagrams, NodeId], Coroutine[None, None, None]]:
    async def answer(flow: Datagrams, peer: NodeId) -> None:
        async for _ in flow:
            flow.send(str(id).encode())

    return answer


async def _asked(flow: Datagrams) -> NodeId:
    """Ask until an answer comes: UDP promises nothing. Raises ConnectionLost when the flow has ended."""
    async with within(DEADLINE_S):
        while True:
            flow.send(b"?")
            try:
                return NodeId.parse((await asyncio.wait_for(flow.receive(), 0.3)).decode())
            except TimeoutError:
                continue


async def test_a_flow_to_any_instance_ends_when_that_falls_silent(mesh: Mesh) -> None:
    async with await mesh.here.datagrams_any("names", trusted="any") as flow:
        first = await _asked(flow)
        assert flow.peer == first
        mesh.silence(first)
        with pytest.raises(ConnectionError):
            await _asked(flow)
    async with await mesh.here.datagrams_any("names", trusted="any") as flow:
        assert await _asked(flow) == mesh.other(first).id


async def test_an_instance_that_refuses_is_followed_by_another(mesh: Mesh) -> None:
    for node in mesh.instances:
        async with await mesh.here.datagrams_any("names", trusted=[node.id]) as flow:
            assert await _asked(flow) == node.id
    picky, other = mesh.instances
    picky.serve_datagrams("picky", _answering(picky.id), allow=[other.id])
    other.serve_datagrams("picky", _answering(other.id), allow=["any"])
    await _offered(mesh.here, "picky")
    for _ in range(4):
        async with await mesh.here.datagrams_any("picky", trusted="any") as flow:
            assert await _asked(flow) == other.id
    with pytest.raises(PolicyDenied):
        await mesh.here.datagrams_any("picky", trusted=[picky.id])
    with pytest.raises(NotFound):
        await mesh.here.datagrams_any("nothing", trusted="any")


async def test_a_forward_by_name_goes_on_at_another_instance(mesh: Mesh) -> None:
    book = ServiceBook(mesh.here)
    listen = (await book.forward("udp://127.0.0.1:0", "names", trusted=("any",)))["listen"]
    came: asyncio.Queue[bytes] = asyncio.Queue()

    class Client(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: object) -> None:
            came.put_nowait(data)

    at = ("127.0.0.1", int(listen.rpartition(":")[2]))
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Client, remote_addr=at)

    async def asked(unlike: NodeId | None = None) -> NodeId:
        async with within(DEADLINE_S):
            while True:
                transport.sendto(b"?")
                try:
                    found = NodeId.parse((await asyncio.wait_for(came.get(), 0.1)).decode())
                except TimeoutError:
                    continue
                if found != unlike:
                    return found

    try:
        first = await asked()
        mesh.silence(first)
        began = asyncio.get_running_loop().time()
        assert await asked(unlike=first) == mesh.other(first).id
        print(f"silent for {asyncio.get_running_loop().time() - began:.2f} s")
    finally:
        transport.close()
        await book.close()
