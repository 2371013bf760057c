"""Status of a running node as plain JSON: itself, its peers, and what it knows of the mesh."""

from __future__ import annotations

from typing import Any

from meshnode.base.clock_offset import RELEASED_S, date
from meshnode.directory.announcement import Instance
from meshnode.errors import GrantError
from meshnode.identity.node_id import NodeId
from meshnode.paths.describe import describe_endpoint, describe_history
from meshnode.quic.engines import FAST, refused
from meshnode.runtime.grant_store import secret_lost
from meshnode.runtime.runtime import Runtime
from meshnode.trust.chain import verify_chain
from meshnode.trust.decision import decide, narrowed
from meshnode.trust.policy import Act

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
        "clock": runtime.sealer.skew.to_json(now),
        "mdns": sources.get("mdns", {"on": False}),
        "sources": sources,
        "gossip": stack.gossip.summary() if stack.gossip is not None else None,
        "offers": stack.registry.offers.summary() if stack.registry is not None else None,
        "engine": stack.context.engines.name,
        "post_quantum": config.post_quantum,
        "engine_refused": refused.get(FAST) if config.engine == "auto" else None,
        "uptime_s": round(now - runtime.journal.begun, 3),
        "revocations": describe_revocations(runtime),
        "stood_down": runtime.stack.context.fencing.stood_down,
        "degraded": degraded(runtime),
        "seed": config.seed_role,
        "role": "seed" if config.seed_role else config.role,
        "trust": describe_trust(runtime),
        "services": services,
        "counters": {**runtime.metrics.counters, **runtime.sealer.drops},
    }


def describe_trust(runtime: Runtime) -> Json | None:
    """Return what this node's grants say, and which part of their lifetime is over; None without an authority.

    ``error`` says why they do not hold; the other keys are missing then.
    """
    authority, context = runtime.config.authority, runtime.stack.context
    if not authority:
        return None
    wall = runtime.clock.wall()
    try:
        own = verify_chain(context.grants, runtime.stack.id, NodeId.parse(authority), wall)
    except GrantError as error:
        return {"authority": authority, "error": error.message}
    return {
        "authority": authority,
        "error": "",
        "roles": sorted(own.roles),
        "grant": own.grants[-1],
        "expires": own.expires / 1000,
        "part_over": round(own.part_over(wall), 4),
        "overused": sorted(context.standings.redemptions.excess),
    }


def describe_revocations(runtime: Runtime) -> Json | None:
    """Return how many revocations this node knows, and whether it waits for the first word of them."""
    revoking = runtime.stack.context.revoking
    return None if revoking.held is None else {"known": len(revoking.held), "waits": revoking.waits}


def degraded(runtime: Runtime) -> list[str]:
    """Return what does not work as it should while the node goes on, a sentence each.

    Empty when all does.
    """
    early = [] if runtime.clock.wall() >= RELEASED_S else [f"the clock is wrong: it says {date(runtime.clock.wall())}"]
    twins = [
        "another host uses the same key as this node"
        if node == runtime.stack.id
        else f"two hosts use the same key, that of {node.short}"
        for node in runtime.stack.context.peers.twins.noted(runtime.clock.monotonic())
    ]
    revoking = runtime.stack.context.revoking
    for key in runtime.stack.context.successors.disputed():
        early.append(
            f"two keys say that they have replaced {key.short}: neither is admitted; revoke it, and join again"
        )
    if runtime.stack.context.fencing.stood_down:
        early.append("this node stands down: another host uses its key, and has precedence (duplicate)")
    if revoking.own_revoked():
        early.append("this node's key or grant was revoked: no other node admits it")
    if revoking.held is not None and revoking.held.dropped:
        early.append(f"{revoking.held.dropped} revocations had no place: make a new mesh for those that stay")
    if revoking.waits:
        early.append("this node was away: services wait until a neighbour has told which keys are revoked")
    early += secret_lost(runtime.state.home, runtime.stack.context.mesh_keys)
    parts = runtime.policy, runtime.audit, runtime.state, runtime.addresses
    return [*twins, *(text for part in parts for text in part.degraded()), *early]


def describe_peers(runtime: Runtime) -> list[Json]:
    """Return the live peers: id, name, path, address, round trip and recent path changes.

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
                "name": name_of(runtime, session.peer),
                "address": str(session.peer.overlay),
                **describe_endpoint(paths, paths.active),
                "state": paths.seeking.connectivity.value,
                "rtt_ms": round(rtt * 1000, 3) if rtt is not None else None,
                "streams": len(link.streams),
                "bytes_in": link.bytes_in,
                "bytes_out": link.streams.bytes_out,
                "since_s": round(now - link.started, 1),
                "dialled": link.dialler,
                "key_exchange": link.handshake.group,
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
        node = NodeId.parse(item["id"])
        item["name"] = name_of(runtime, node)
        item["allowed"] = _may_use(runtime, node, item["service"], item["restricted"])
        if item["allowed"] is False:
            item["state"] = "refused"
    return found


def _may_use(runtime: Runtime, node: NodeId, service: str, restricted: bool) -> bool | None:
    """Return whether this node may use a service, as far as it knows: by the mesh's policy and its own grants.

    None where that lets it, and only the serving node knows whether its list has it.
    """
    guard = runtime.guard
    if node == guard.own:
        return True
    own, mesh = guard.known(guard.own), guard.mesh
    refusal = narrowed(own, service, Act.SERVICE)
    if refusal is None and mesh is not None and not mesh.observes:
        decision = decide(mesh, own, guard.known(node), service, Act.SERVICE)
        refusal = None if decision.allowed else decision
    if refusal is not None:
        return False
    return None if restricted else True


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
