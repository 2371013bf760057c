"""meshnode: a userspace mesh in which a program's address is its public key.

Example:

    import meshnode


    async def echo(reader, writer, peer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


    async with meshnode.Node(meshnode.Config(home="~/.meshnode")) as node:
        node.serve("echo", echo, allow=["any"])  # no node may use it unless named
        reader, writer = await node.open(peer_id, "echo")
        reader, writer = await node.open_any("db")  # any instance of a service, wherever it is
        topic = await node.join("news")
        await topic.publish(b"hello")
        async for message in topic:
            print(message.sender, message.seq, message.data, topic.lost)
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's, which takes 8 ms to load: until a command begins, Ctrl-C shows a traceback
if TYPE_CHECKING:
    from typing import Any

    from meshnode.base.address import Addr
    from meshnode.config import Config
    from meshnode.daemon.attached.node import AttachedNode, attach
    from meshnode.daemon.attached.patch import Patch, patch
    from meshnode.directory.announcement import Instance, Offer
    from meshnode.discovery.resolver import Resolved
    from meshnode.errors import (
        AddressInUse,
        AlreadyRunning,
        ConfigError,
        ConnectionLost,
        DatagramsUnsupported,
        FlowClosed,
        GrantError,
        GrantReject,
        HandshakeTimeout,
        InvalidId,
        KeyFileError,
        LibraryMissing,
        MeshError,
        NameChanged,
        NameDisputed,
        NodeClosed,
        NoPathError,
        NotFound,
        NotRunning,
        PeerIdentityError,
        PeerRestarted,
        PeerSilent,
        PolicyDenied,
        RateLimited,
        RecordError,
        RecordExpired,
        RecordReject,
        ServiceNotFound,
        ServiceUnavailable,
        StreamLimitError,
        StreamMisused,
        TopicClosed,
        Unsupported,
    )
    from meshnode.identity.keys import Identity
    from meshnode.identity.node_id import NodeId
    from meshnode.identity.record import Endpoint, EndpointKind, EndpointRecord
    from meshnode.sdk.asyncio_server import ProtocolServer
    from meshnode.sdk.connection import Connection
    from meshnode.sdk.datagrams import DatagramHandler, Datagrams
    from meshnode.sdk.events import Event, EventKind
    from meshnode.sdk.node import Node
    from meshnode.sdk.service import Handler, Service
    from meshnode.sdk.sockets import MeshSocket
    from meshnode.sdk.streams import MeshReader, MeshStream, MeshWriter
    from meshnode.sdk.topic import Topic
    from meshnode.stack.probe import Pinged
    from meshnode.topics.inbox import TopicMessage

__version__ = "0.1.0"

__all__ = [
    "Addr",
    "AddressInUse",
    "AlreadyRunning",
    "AttachedNode",
    "Config",
    "ConfigError",
    "Connection",
    "ConnectionLost",
    "DatagramHandler",
    "Datagrams",
    "DatagramsUnsupported",
    "Endpoint",
    "EndpointKind",
    "EndpointRecord",
    "Event",
    "EventKind",
    "FlowClosed",
    "GrantError",
    "GrantReject",
    "Handler",
    "HandshakeTimeout",
    "Identity",
    "Instance",
    "InvalidId",
    "KeyFileError",
    "LibraryMissing",
    "MeshError",
    "MeshReader",
    "MeshSocket",
    "MeshStream",
    "MeshWriter",
    "NameChanged",
    "NameDisputed",
    "NoPathError",
    "Node",
    "NodeClosed",
    "NodeId",
    "NotFound",
    "NotRunning",
    "Offer",
    "Patch",
    "PeerIdentityError",
    "PeerRestarted",
    "PeerSilent",
    "Pinged",
    "PolicyDenied",
    "ProtocolServer",
    "RateLimited",
    "RecordError",
    "RecordExpired",
    "RecordReject",
    "Resolved",
    "Service",
    "ServiceNotFound",
    "ServiceUnavailable",
    "StreamLimitError",
    "StreamMisused",
    "Topic",
    "TopicClosed",
    "TopicMessage",
    "Unsupported",
    "__version__",
    "attach",
    "patch",
]

if not TYPE_CHECKING:  # checkers see the imports above, so that a misspelt name is an error to them
    _MODULES = {
        "meshnode.daemon.attached.node": ("AttachedNode", "attach"),
        "meshnode.daemon.attached.patch": ("Patch", "patch"),
        "meshnode.base.address": ("Addr",),
        "meshnode.config": ("Config",),
        "meshnode.directory.announcement": ("Instance", "Offer"),
        "meshnode.discovery.resolver": ("Resolved",),
        "meshnode.identity.keys": ("Identity",),
        "meshnode.identity.node_id": ("NodeId",),
        "meshnode.identity.record": ("Endpoint", "EndpointKind", "EndpointRecord"),
        "meshnode.sdk.asyncio_server": ("ProtocolServer",),
        "meshnode.sdk.connection": ("Connection",),
        "meshnode.sdk.datagrams": ("DatagramHandler", "Datagrams"),
        "meshnode.sdk.events": ("Event", "EventKind"),
        "meshnode.sdk.node": ("Node",),
        "meshnode.sdk.service": ("Handler", "Service"),
        "meshnode.sdk.sockets": ("MeshSocket",),
        "meshnode.sdk.streams": ("MeshReader", "MeshStream", "MeshWriter"),
        "meshnode.sdk.topic": ("Topic",),
        "meshnode.stack.probe": ("Pinged",),
        "meshnode.topics.inbox": ("TopicMessage",),
    }
    _WHERE = {name: module for module, names in _MODULES.items() for name in names}

    def __getattr__(name: str) -> Any:
        """Import on first use (PEP 562), so that ``import meshnode`` stays cheap."""
        if name not in __all__:
            raise AttributeError(f"module 'meshnode' has no attribute {name!r}")
        from importlib import import_module

        with import_module("meshnode.base.collector").paused():
            value = getattr(import_module(_WHERE.get(name, "meshnode.errors")), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return __all__
