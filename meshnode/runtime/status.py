"""Status of a running node as plain JSON: itself, its peers, and what it knows of the mesh."""

from __future__ import annotations

from typing import Any

from meshnode.directory.announcement import Instance
from meshnode.identity.node_id import NodeId
from meshnode.paths.describe import describe_endpoint, describe_history
from meshnode.runtime.runtime import Runtime

Json = dict[str, Any]


def describe_node(runtime: Runtime, services: list[str]) -> Json:
    """Return the node itself: addresses, network, clock, sources and counters.

    ``services`` are the names served here. Counters are since the start of the process.
    """
    stack, config, now = runtime.stack, runtime.config, runtime.clock.monotonic()
    record = stack.record
    sources = {source.name: source.status() for source in stack.sources}
    return {
        "id": str(stack.id),
        "name": config.name,
        "address": str(stack.id.overlay),
        "endpoints": [str(e) for e in record.endpoints] if record is not None else [],
        "seq": record.seq if record is not None else 0,
        "peers": sum(session.connection is not None for session in stack.sessions.values()),
        "contacts": len(stack.dht.contacts()),
        "nat": {**stack.nat.to_json(now), "mappings": [], **runtime.addresses.mapping_status()},
        "relays": stack.relaying.status(),
        "clock": runtime.sealer.skew.to_json(),
        "mdns": sources.get("mdns", {"on": False}),
        "sources": sources,
        "gossip": stack.gossip.summary() if stack.gossip is not None else None,
        "uptime_s": round(now - runtime.started, 3),
        "seed": config.seed_role,
        "services": services,
        "counters": {**runtime.metrics.counters, **runtime.sealer.drops},
    }


def describe_peers(runtime: Runtime) -> list[Json]:
    """Return the live peers: id, path, address, round trip and recent path changes.

    ``rtt_ms`` is QUIC's smoothed round trip, null before the first sample; peers without a connection are left out.
    """
    now = runtime.clock.monotonic()
    found = []
    for session in runtime.stack.sessions.values():
        link = session.connection
        if link is None:
            continue
        paths = session.paths
        rtt = link.engine.rtt()
        found.append(
            {
                "id": str(session.peer),
                "address": str(session.peer.overlay),
                **describe_endpoint(paths, paths.active),
                "state": paths.seeking.connectivity.value,
                "rtt_ms": round(rtt * 1000, 3) if rtt is not None else None,
                "streams": len(link.streams),
                "bytes_in": link.bytes_in,
                "bytes_out": link.streams.bytes_out,
                "since_s": round(now - link.started, 1),
                "dialled": link.dialler,
                "history": describe_history(paths, now),
            }
        )
    return found


def describe_services(runtime: Runtime, name: str | None = None) -> list[Json]:
    """Return the instances of one service or of all, this node's included."""
    registry = runtime.stack.registry
    if registry is None:
        return []
    now = runtime.clock.monotonic()
    found: list[Json] = []
    own = registry.directory.announced()
    for service in sorted({*registry.directory.names(), *own}) if name is None else [name]:
        if service in own:
            state = "up" if own[service].healthy else "failing"
            found.append(Instance(runtime.stack.id, service, own[service], 0.0, state, 0.0).to_json())
        found += [instance.to_json() for instance in registry.instances(service, now)]
    for item in found:
        item["name"] = name_of(runtime, NodeId.parse(item["id"]))
    return found


def describe_members(runtime: Runtime) -> list[Json]:
    """Return all nodes that gossip knows, this one included; empty without gossip."""
    gossip = runtime.stack.gossip
    if gossip is None:
        return []
    ids = {runtime.stack.id: None, **dict.fromkeys(gossip.members())}
    return [
        {"id": str(peer), "status": gossip.status(peer).value, "name": name_of(runtime, peer)} for peer in sorted(ids)
    ]


def name_of(runtime: Runtime, peer: NodeId) -> str:
    """Return the name that a node holds; "" when it has none."""
    registry = runtime.stack.registry
    return registry.names.name_of(peer, runtime.clock.wall()) if registry is not None else ""
