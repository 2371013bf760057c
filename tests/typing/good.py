"""A program that uses everything public, with every type written out. mypy --strict and pyright must accept it."""

# pyright: strict
from __future__ import annotations

import asyncio
from collections.abc import Sequence

import meshnode


async def echo(reader: meshnode.MeshReader, writer: meshnode.MeshWriter, peer: meshnode.NodeId) -> None:
    async for line in reader:
        writer.write(line)
        await writer.drain()
    print(peer.short, writer.get_extra_info("service"))


async def asyncio_program(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.writelines([b"one", bytearray(b"two"), memoryview(b"three")])
    await writer.drain()
    return await reader.readline()


async def asyncio_handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: meshnode.NodeId) -> None:
    print(await asyncio_program(reader, writer), writer.get_extra_info("peername"), peer)


async def streams(node: meshnode.Node, peer: meshnode.NodeId) -> bytes:
    reader, writer = await node.open(peer, "echo")
    other: tuple[meshnode.MeshReader, meshnode.MeshWriter] = await node.open("laptop", "echo")
    other[1].reset()
    writer.writelines([b"one", b"two"])
    writer.write_eof()
    data: bytes = await reader.readexactly(6) + await reader.read(10) + await reader.readuntil(b"\n")
    writer.close()
    await writer.wait_closed()
    reader, writer = await node.open_any("db", trusted=[peer, "rack1"], sticky=True)
    stream: meshnode.MeshStream = await node.open(peer, "echo")
    async with stream as (reader, writer), writer:
        buffered: int = writer.transport.get_write_buffer_size()
        print(await asyncio_program(reader, writer), await reader.readuntil((b"\r", b"\n")), buffered)
    connection: meshnode.Connection = await node.connect(str(peer))
    reader, writer = await connection.open("echo")
    failure: meshnode.MeshError | None = connection.error
    print(failure, connection.is_open, connection.peer)
    return data


async def found(node: meshnode.Node) -> Sequence[meshnode.Instance]:
    resolved: meshnode.Resolved = await node.resolve("laptop.mesh")
    record: meshnode.EndpointRecord = resolved.record
    endpoints: tuple[meshnode.Endpoint, ...] = record.endpoints
    kind: meshnode.EndpointKind = endpoints[0].kind
    pinged: meshnode.Pinged = await node.ping(record.id, timeout=1.0)
    rtt: float | None = pinged.rtt
    instances: list[meshnode.Instance] = await node.find("db")
    offers: list[meshnode.Offer] = [instance.offer for instance in instances]
    print(kind, rtt, resolved.source, resolved.ms, [offer.load for offer in offers])
    return instances


async def topic(node: meshnode.Node) -> None:
    joined: meshnode.Topic = await node.join("news", replay=3, limit=10)
    async with joined:
        number: int = await joined.publish(b"hello")
        async for message in joined:
            received: meshnode.TopicMessage = message
            sender: meshnode.NodeId = received.sender
            print(number, sender, received.seq, received.data, joined.lost, joined.links, joined.members)


async def events(node: meshnode.Node) -> None:
    async for event in node.events():
        happened: meshnode.Event = event
        kind: meshnode.EventKind = happened.kind
        if kind is meshnode.EventKind.SERVICE_UP:
            text: str = happened.service
            print(text, happened.peer, happened.detail)


def served(node: meshnode.Node) -> meshnode.Service:
    handler: meshnode.Handler = echo
    service: meshnode.Service = node.serve("echo", handler, allow=["any"], announce=True, meta={"v": "1"})
    service.update(healthy=True, load=10)
    node.serve("any", asyncio_handler, allow="any", limit=10)
    node.serve("one", handler, allow=node.id)
    node.serve("text", handler, allow=str(node.id))
    node.serve("none", handler, allow=None)
    return service


async def withdrawn(service: meshnode.Service) -> None:
    async with service as same:
        print(same.is_served)


async def main() -> None:
    identity: meshnode.Identity = meshnode.Identity.generate()
    config = meshnode.Config(home="/tmp/a", seeds=(f"{identity.id}@127.0.0.1:4242",), idle_timeout=60.0)
    async with meshnode.Node(config) as node:
        print(node.id == meshnode.NodeId.parse(str(node.id)), node.address, node.record.seq, node.is_closed)
        moved: meshnode.Addr = await node.rebind("127.0.0.1:0")
        print(moved.host, moved.port, node.status()["uptime_s"], node.peers())
        try:
            await streams(node, identity.id)
        except meshnode.NoPathError as error:
            attempts: list[tuple[str, str]] = error.attempts
            print(attempts, error.code, error.hint)
        except (meshnode.PolicyDenied, meshnode.ServiceNotFound) as refused:
            print(refused.message)
        except TimeoutError as late:
            print(late)
        except (meshnode.ConnectionLost, ConnectionResetError) as lost:
            print(lost)
        except (meshnode.StreamMisused, meshnode.Unsupported, RuntimeError) as misused:
            print(misused)


if __name__ == "__main__":
    asyncio.run(main())
