"""Output of ``status``: a summary for people, and the verdict of ``--check``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshnode.diagnosis.finding import plural, seconds

Json = dict[str, Any]
YOUNG_S = 30.0  # a node that is younger may still be looking for its seeds


def lines(status: Json) -> Iterator[str]:
    """Yield the summary: the node, what it exposes and forwards, and what does not work."""
    yield f"{status['id']}  {status.get('name') or ''}".rstrip()
    yield f"  address   {status['address']}"
    yield f"  endpoints {', '.join(status['endpoints']) or 'none'}"
    yield f"  peers     {status['peers']} live, {status['contacts']} known"
    yield f"  up        {seconds(status['uptime_s'])}, record {status['seq']}, QUIC by {status['engine']}"
    if status.get("role") == "leaf":
        yield "  role      leaf: it does nothing for other nodes"
    for item in status["exposes"]:
        yield f"  exposed   {item['name']} -> {item['target']} for {', '.join(item['allow']) or 'no node'}"
        if item.get("last_error"):
            yield f"            last error: {item['last_error']}"
    for item in status["forwards"]:
        carried = f", {plural(item['connections'], 'connection')}" if item.get("connections") else ""
        yield f"  forwarded {item['listen']} -> {item['to']}{carried}"
        if error := item.get("last_error"):
            yield f"            last error, {seconds(error['ago_s'])} ago: {error['message']}"
    for problem in status.get("degraded", ()):
        yield f"  PROBLEM   {problem}"


def problems(status: Json) -> list[str]:
    """Return what is wrong with the node itself, a sentence each; empty for a healthy one.

    Services of other nodes and the programs behind its own are not its health: to restart it would mend none of them.
    """
    found = list(status.get("degraded", ()))
    if not status["endpoints"]:
        found.append("this host has no address, so no node can reach this one")
    seeds = status.get("sources", {}).get("seeds", {}).get("configured", 0)
    if seeds and not status["peers"] and not status["contacts"] and status["uptime_s"] > YOUNG_S:
        found.append(f"no node of the mesh is reached, neither the {plural(seeds, 'seed')} nor any other")
    return found
