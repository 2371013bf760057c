"""Whether a service can be reached, found out without using it: its target sees no connection."""

from __future__ import annotations

import asyncio

from meshnode.errors import (
    ConfigError,
    MeshError,
    NoPathError,
    NotFound,
    PolicyDenied,
    ServiceNotFound,
    ServiceUnavailable,
)
from meshnode.identity.node_id import NodeId
from meshnode.quic.preface import ASK
from meshnode.sdk.failover import ANY
from meshnode.sdk.node import Node, runtime_of

CHECK_S = 2.5  # an answer that takes longer is told as none


async def why_not(
    node: Node, peer: NodeId | str | None, service: str, trusted: tuple[str, ...] = ()
) -> MeshError | None:
    """Return why a connection to a service would fail now; None when it would not.

    Args:
        node: The node that would connect.
        peer: The node that serves; None for those that are trusted, or the one that the service means here.
        service: The service's name there.
        trusted: The nodes that may serve, when no node is named.

    Takes at most ``CHECK_S``.
    """
    missing: MeshError = _not_offered(service) if peer is None else _not_called(peer)
    try:
        async with asyncio.timeout(CHECK_S):
            if peer is None:
                offered = [instance.node for instance in await node.find(service)]
                return await _not_trusted(node, service, offered, trusted) if offered else missing
            id = await node.identify(peer)
            if id == node.id:
                return ConfigError(
                    "that is a service of this node itself", hint="use what it exposes without a forward"
                )
            missing = NoPathError(f"{_named(peer)} has not answered yet", hint="does it run, in the same mesh?")
            return await _answer(node, peer, id, service)
    except TimeoutError:
        return missing
    except MeshError as error:
        return error


def _not_offered(service: str) -> NotFound:
    return NotFound(f"no other node offers {service!r} yet", hint="`meshnode services` lists what is; is it exposed?")


async def _not_trusted(node: Node, service: str, offered: list[NodeId], trusted: tuple[str, ...]) -> MeshError | None:
    """Return why none of those that offer a service may serve. Raises NameDisputed, NameChanged."""
    registry = runtime_of(node).stack.registry
    if not trusted and registry is not None:
        registry.providers.choose(service, offered)
    if not trusted or ANY in trusted or any([await node.identify(each) in offered for each in trusted]):
        return None
    return NotFound(
        f"none of the nodes that are trusted for it offers {service!r} yet",
        hint=f"`meshnode services {service}` lists all",
    )


def _not_called(peer: NodeId | str) -> NotFound:
    return NotFound(f"no node is called {peer} yet", hint="`meshnode watch` shows the names; an id works as well")


async def _answer(node: Node, peer: NodeId | str, id: NodeId, service: str) -> MeshError | None:
    connection = await node.connect(id)
    try:
        _, writer = await connection.open(ASK + service)
    except ServiceNotFound:
        return ServiceNotFound(
            f"{_named(peer)} has no service {service!r}", hint=f"on that node: meshnode expose {service} PORT"
        )
    except PolicyDenied:
        hint = f"on that node: meshnode expose {service} ... --allow {node.id}"
        return PolicyDenied(f"{_named(peer)} does not let this node use {service!r}", hint=hint)
    except ServiceUnavailable:
        return ServiceUnavailable(
            f"{service!r} on {_named(peer)} does not work: what it exposes does not answer",
            hint="start that program there",
        )
    writer.close()
    return None


def _named(peer: NodeId | str) -> str:
    return peer.short if isinstance(peer, NodeId) else str(peer)
