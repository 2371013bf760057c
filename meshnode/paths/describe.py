"""What is known of a peer's paths, as plain JSON for people and scripts. Changes nothing."""

from __future__ import annotations

from meshnode.base.address import Addr
from meshnode.paths.candidate import PathState
from meshnode.paths.peer import PeerPaths

NEVER = float("-inf")
Json = dict[str, object]


def describe_endpoint(paths: PeerPaths, addr: Addr | None) -> Json:
    """The ``path``, ``endpoint`` and whether that is a ``tunnel`` (WebSocket)."""
    return {
        "path": paths.path_kind(addr) if addr is not None else "none",
        "endpoint": str(addr) if addr is not None else None,
        "tunnel": addr is not None and addr.is_tunnel,
    }


def describe_history(paths: PeerPaths, now: float) -> list[Json]:
    """The path changes, the oldest first: how long ago (s), why, and where packets went from then on."""
    return [
        {"ago_s": round(now - at, 3), "why": why, "endpoint": str(addr) if addr else None}
        for at, why, addr in paths.history
    ]


def describe_candidates(paths: PeerPaths, now: float) -> list[Json]:
    """Every address that the peer may be at, and what came of it; the one in use first, then by kind."""
    found = sorted(paths.candidates(), key=lambda c: (c.addr != paths.active, c.rank, c.state is PathState.FAILED))
    return [
        {
            **describe_endpoint(paths, c.addr),
            "in_use": c.addr == paths.active,
            "source": c.source,
            "state": c.state.value,
            "rtt_ms": round(c.rtt * 1000, 3) if c.rtt is not None else None,
            "heard_s": round(now - c.last_heard, 3) if c.last_heard != NEVER else None,
            "probes": c.probes,
            "answers": c.samples,
            "failures": c.failures,
            "distrusted_s": round(max(0.0, c.trusted_at - now), 3) if c.trusted_at != NEVER else 0.0,
        }
        for c in found
    ]
