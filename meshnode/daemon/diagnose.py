"""Collector of what ``meshnode doctor`` reasons about: looks, asks the seeds and the peer, judges nothing.

A snapshot is one JSON object:

    running    true
    status     as ``meshnode status``
    peers      as ``meshnode peers``
    addresses  [[host, prefix length], ...] of this host
    udp        {"outside_s", "lan_s"}: seconds since a member was heard by UDP from outside, and from our own networks
    wall       Unix seconds
    settings   {"listen", "mdns", "dht", "tunnel"}
    seeds      [{"id", "host", "port", "addresses", "error", "answers", "rtt_ms", "path", "tunnel", "why"}, ...]
    peer       null, or as ``peer`` below describes
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from meshnode.base.limits import MAX_DOCTOR_SEEDS
from meshnode.base.path import ViaTunnel, udp_address
from meshnode.config import Seed, parse_seed
from meshnode.errors import MeshError
from meshnode.identity.node_id import NodeId
from meshnode.paths.candidate import NEVER
from meshnode.paths.describe import describe_candidates, describe_endpoint, describe_history
from meshnode.runtime.host_names import look_up
from meshnode.runtime.interfaces import local_networks
from meshnode.sdk.node import Node, runtime_of

NAME_TIMEOUT_S = 3.0
SEED_TIMEOUT_S = 6.0  # a handshake has 5
ECHO_TIMEOUT_S = 1.0
UPGRADE_S = 3.0  # how long a direct path may take to replace a relay that is only the first contact
LOOK_EVERY_S = 0.1
Json = dict[str, Any]


async def diagnose(node: Node, wanted: NodeId | None) -> AsyncIterator[Json]:
    """Look at the node, ask its seeds and a peer, and yield what the doctor reasons about.

    Args:
        node: The running node.
        wanted: A peer to connect to and to describe as well; None for the network alone.

    Yields:
        ``{"progress": text}`` before each step that may take seconds, then one ``{"snapshot": ...}`` with the keys in
        the module's docstring. What fails on the way is part of the snapshot and raises nothing.
    """
    seeds = [seed for seed in map(parse_seed, node.config.seeds) if seed.id != node.id][:MAX_DOCTOR_SEEDS]
    if seeds:
        yield {"progress": "asking the seeds"}
    asked = list(await asyncio.gather(*(_seed(node, seed) for seed in seeds)))
    found: Json | None = None
    if wanted is not None:
        yield {"progress": f"looking for {wanted.short}"}
        found = await _find(node, wanted)
        if found.get("path") == "relay" and found.get("since_s", UPGRADE_S) < UPGRADE_S:
            yield {"progress": "connected through a relay; waiting for a direct path"}
            await _upgrade(node, wanted)
        found.update(await _echo(node, wanted))
        found.update(describe_peer(node, wanted))
    now = time.monotonic()
    yield {
        "snapshot": {
            "running": True,
            "home": str(node.config.home_path),
            "status": node.status(),
            "peers": node.peers(),
            "addresses": [list(network) for network in local_networks(loopback=True)],
            "udp": _udp(node, now),
            "wall": runtime_of(node).clock.wall(),
            "settings": {name: getattr(node.config, name) for name in ("listen", "mdns", "dht", "tunnel")},
            "seeds": asked,
            "peer": found,
        }
    }


def describe_peer(node: Node, peer: NodeId) -> Json:
    """Describe the connection to one peer.

    Returns ``id``, ``connected`` and ``self`` and, when it is connected, what ``meshnode peers`` has of it and its
    ``candidates``: every address that it may be at, with probes, answers and round trips.
    """
    found: Json = {"id": str(peer), "connected": False, "self": peer == node.id}
    live = next((entry for entry in node.peers() if entry["id"] == str(peer)), None)
    session = runtime_of(node).stack.sessions.get(peer)
    if live is not None and session is not None:
        candidates = describe_candidates(session.paths, time.monotonic())
        found.update(live, connected=True, candidates=candidates)
    return found


def last_change(node: Node, peer: NodeId) -> Json:
    """Return the newest path change of a peer: ``why`` and ``ago_s``.

    Empty while there is none.
    """
    session = runtime_of(node).stack.sessions.get(peer)
    history = describe_history(session.paths, time.monotonic()) if session is not None else []
    return {name: history[-1][name] for name in ("why", "ago_s")} if history else {}


async def _find(node: Node, peer: NodeId) -> Json:
    """Resolve and connect; what failed is part of the answer."""
    found: Json = {"record": None, "error": None, "attempts": []}
    if peer == node.id:
        return {**found, **describe_peer(node, peer)}
    resolution, connection = await asyncio.gather(node.resolve(peer), node.connect(peer), return_exceptions=True)
    if not isinstance(resolution, BaseException):
        found["record"] = {**resolution.record.to_json(), "source": resolution.source, "ms": round(resolution.ms, 3)}
    if isinstance(connection, MeshError):
        found["error"] = connection.to_json()["error"]
        attempts = getattr(connection, "attempts", [])
        found["attempts"] = [{"endpoint": endpoint, "outcome": outcome} for endpoint, outcome in attempts]
    for outcome in (resolution, connection):
        if isinstance(outcome, BaseException) and not isinstance(outcome, MeshError):
            raise outcome
    return {**found, **describe_peer(node, peer)}


async def _echo(node: Node, peer: NodeId) -> Json:
    """Return ``echo_ms``, null when the peer did not answer: it may have gone since."""
    if runtime_of(node).stack.sessions.get(peer) is None:
        return {}
    try:
        outcome = await node.ping(peer, ECHO_TIMEOUT_S)
    except MeshError as error:
        return {"echo_ms": None, "error": error.to_json()["error"]}
    return {"echo_ms": round(outcome.rtt * 1000, 3) if outcome.rtt is not None else None}


async def _upgrade(node: Node, peer: NodeId) -> None:
    for _ in range(int(UPGRADE_S / LOOK_EVERY_S)):
        if describe_peer(node, peer).get("path") != "relay":
            break
        await asyncio.sleep(LOOK_EVERY_S)


async def _seed(node: Node, seed: Seed) -> Json:
    found: Json = {"id": str(seed.id), "host": seed.host, "port": seed.port, "error": "", "answers": False, "why": ""}
    found["addresses"], found["error"] = await _addresses(seed)
    try:
        async with asyncio.timeout(SEED_TIMEOUT_S):
            outcome = await node.ping(seed.id)
    except MeshError as error:
        found["why"] = error.message
        return found
    except TimeoutError:
        found["why"] = "no answer in time"
        return found
    rtt = outcome.rtt
    found.update(
        answers=rtt is not None,
        rtt_ms=round(rtt * 1000, 3) if rtt is not None else None,
        path=outcome.path,
        tunnel=isinstance(outcome.endpoint, ViaTunnel),
    )
    return found


async def _addresses(seed: Seed) -> tuple[list[str], str]:
    """Return a seed's IP addresses, or none and the reason."""
    try:
        async with asyncio.timeout(NAME_TIMEOUT_S):
            return await look_up(seed.host), ""
    except TimeoutError:
        return [], "the name server does not answer"
    except OSError as error:
        return [], error.strerror or str(error)


def _udp(node: Node, now: float) -> Json:
    """Return when a member was last heard by UDP: by any sealed datagram, or any packet on a live peer's path."""
    filters = runtime_of(node).stack.nat.filters
    heard = {name: filters.quiet_s(now, outside=name == "outside_s") for name in ("outside_s", "lan_s")}
    for session in runtime_of(node).stack.sessions.values():
        for candidate in session.paths.book:
            if udp_address(candidate.path) is not None and candidate.is_valid and candidate.last_heard != NEVER:
                kind = describe_endpoint(session.paths, candidate.path)["path"]
                name, quiet = "lan_s" if kind == "lan" else "outside_s", now - candidate.last_heard
                heard[name] = quiet if heard[name] is None else min(heard[name] or 0.0, quiet)
    return {name: round(quiet, 3) if quiet is not None else None for name, quiet in heard.items()}
