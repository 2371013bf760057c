"""A peer's paths as plain JSON for people and scripts. Changes nothing."""

from __future__ import annotations

from meshnode.base.address import Addr
from meshnode.paths.candidate import NEVER, PathState
from meshnode.paths.peer import PeerPaths

Json = dict[str, object]


def describe_endpoint(paths: PeerPaths, addr: Addr | None) -> Json:
    """Return the ``path`` (its kind), the ``endpoint``, and whether that is a ``tunnel`` (WebSocket)."""
    return {
        "path": paths.book.kind(addr) if addr is not None else "none",
        "endpoint": str(addr) if addr is not None else None,
        "tunnel": addr is not None and addr.is_tunnel,
    }


def describe_history(paths: PeerPaths, now: float) -> list[Json]:
    """Return the path changes, the oldest first.

    ``ago_s`` is seconds, ``why`` a ``PathReason``, ``endpoint`` where packets went from then on (null: nowhere).
    """
    return [
        {"ago_s": round(now - at, 3), "why": reason.value, "endpoint": str(addr) if addr else None}
        for at, reason, addr in paths.history
    ]


def describe_candidates(paths: PeerPaths, now: float) -> list[Json]:
    """Return all candidate addresses with their probes and answers; the one in use first, then by kind.

    ``rtt_ms`` is milliseconds; ``heard_s`` (since the last packet) and ``distrusted_s`` (from now on) are seconds.
    """
    found = sorted(paths.book, key=lambda c: (c.addr != paths.active, c.rank, c.state is PathState.FAILED))
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
