"""Mistakes that a checker must find: each line that ends with ``# error`` must give one, and no other line."""

from __future__ import annotations

import meshnode
from meshnode import Nodes  # error


async def wrong(node: meshnode.Node, peer: meshnode.NodeId) -> None:
    meshnode.Nod(meshnode.Config(home="/tmp/a"))  # error
    meshnode.Config(home="/tmp/a", seed=())  # error
    meshnode.Config(home="/tmp/a", mdns="yes")  # error
    meshnode.Config()  # error
    await node.opn(peer, "echo")  # error
    await node.open(peer)  # error
    await node.open(peer, 7)  # error
    await node.open_any(peer)  # error
    node.mesh  # error
    node.spawn  # error
    node.serve("echo", lambda reader: reader)  # error
    node.serve("echo", print, allow=7)  # error
    node.serve("echo", print, limit="7")  # error
    reader, writer = await node.open(peer, "echo")
    writer.write("text")  # error
    reader.readall()  # error
    writer.transport.abrt()  # error
    stream = await node.open(peer, "echo")
    stream.writr.close()  # error
    topic = await node.join("news")
    await topic.publish("text")  # error
    async for message in topic:
        message.text  # error
    async for event in node.events():
        event.knd  # error
        meshnode.EventKind.SERVICE_UPP  # error
    for instance in await node.find("db"):
        instance.laod  # error
    connection = await node.connect(peer)
    connection.opn("echo")  # error
    resolved = await node.resolve(peer)
    resolved.recrod  # error
    try:
        print(Nodes)
    except meshnode.NotFond:  # error
        pass
    except meshnode.NoPathError as error:
        print(error.attempt)  # error
