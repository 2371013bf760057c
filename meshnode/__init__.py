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

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshnode.base.address import Addr
    from meshnode.config import Config
    from meshnode.directory.announcement import Instance, Offer
    from meshnode.discovery.resolver import Resolved
    from meshnode.errors import (
        AddressInUse,
        AlreadyRunning,
        ConfigError,
        ConnectionLost,
        HandshakeTimeout,
        InvalidId,
        KeyFileError,
        MeshError,
        NameChanged,
        NodeClosed,
        NoPathError,
        NotFound,
        NotRunning,
        PeerIdentityError,
        PeerRestarted,
        PolicyDenied,
        RateLimited,
        RecordError,
        RecordExpired,
        RecordReject,
        ServiceNotFound,
        ServiceUnavailable,
        StreamLimitError,
        TopicClosed,
    )
    from meshnode.identity.keys import Identity
    from meshnode.identity.node_id import NodeId
    from meshnode.identity.record import Endpoint, EndpointKind, EndpointRecord
    from meshnode.sdk.connection import Connection
    from meshnode.sdk.events import Event, EventKind
    from meshnode.sdk.node import Node
    from meshnode.sdk.service import Handler, Service
    from meshnode.sdk.streams import MeshReader, MeshWriter
    from meshnode.sdk.topic import Topic
    from meshnode.stack.probe import Pinged
    from meshnode.topics.inbox import TopicMessage

__version__ = "0.1.0"

__all__ = [
    "Addr",
    "AddressInUse",
    "AlreadyRunning",
    "Config",
    "ConfigError",
    "Connection",
    "ConnectionLost",
    "Endpoint",
    "EndpointKind",
    "EndpointRecord",
    "Event",
    "EventKind",
    "Handler",
    "HandshakeTimeout",
    "Identity",
    "Instance",
    "InvalidId",
    "KeyFileError",
    "MeshError",
    "MeshReader",
    "MeshWriter",
    "NameChanged",
    "NoPathError",
    "Node",
    "NodeClosed",
    "NodeId",
    "NotFound",
    "NotRunning",
    "Offer",
    "PeerIdentityError",
    "PeerRestarted",
    "Pinged",
    "PolicyDenied",
    "RateLimited",
    "RecordError",
    "RecordExpired",
    "RecordReject",
    "Resolved",
    "Service",
    "ServiceNotFound",
    "ServiceUnavailable",
    "StreamLimitError",
    "Topic",
    "TopicClosed",
    "TopicMessage",
    "__version__",
]

if not TYPE_CHECKING:  # checkers see the imports above, so that a misspelt name is an error to them
    _MODULES = {
        "meshnode.base.address": ("Addr",),
        "meshnode.config": ("Config",),
        "meshnode.directory.announcement": ("Instance", "Offer"),
        "meshnode.discovery.resolver": ("Resolved",),
        "meshnode.identity.keys": ("Identity",),
        "meshnode.identity.node_id": ("NodeId",),
        "meshnode.identity.record": ("Endpoint", "EndpointKind", "EndpointRecord"),
        "meshnode.sdk.connection": ("Connection",),
        "meshnode.sdk.events": ("Event", "EventKind"),
        "meshnode.sdk.node": ("Node",),
        "meshnode.sdk.service": ("Handler", "Service"),
        "meshnode.sdk.streams": ("MeshReader", "MeshWriter"),
        "meshnode.sdk.topic": ("Topic",),
        "meshnode.stack.probe": ("Pinged",),
        "meshnode.topics.inbox": ("TopicMessage",),
    }
    _WHERE = {name: module for module, names in _MODULES.items() for name in names}

    def __getattr__(name: str) -> Any:
        """Import on first use (PEP 562), so that ``import meshnode`` stays cheap."""
        if name not in __all__:
            raise AttributeError(f"module 'meshnode' has no attribute {name!r}")
        value = getattr(import_module(_WHERE.get(name, "meshnode.errors")), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return __all__
