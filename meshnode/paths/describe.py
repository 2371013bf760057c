"""A peer's paths as plain JSON for people and scripts. Changes nothing."""

from __future__ import annotations

from meshnode.base.path import Path, ViaTunnel
from meshnode.paths.candidate import NEVER, PathState
from meshnode.paths.peer import PeerPaths

Json = dict[str, object]


def describe_endpoint(paths: PeerPaths, path: Path | None) -> Json:
    """Return the ``path`` (its kind), the ``endpoint``, and whether that is a ``tunnel`` (WebSocket)."""
    return {
        "path": paths.book.kind(path) if path is not None else "none",
        "endpoint": str(path) if path is not None else None,
        "tunnel": isinstance(path, ViaTunnel),
    }


def describe_history(paths: PeerPaths, now: float) -> list[Json]:
    """Return the path changes, the oldest first.

    ``ago_s`` is seconds, ``why`` a ``PathReason``, ``endpoint`` where packets went from then on (null: nowhere).
    ``silent_s`` is for how long nothing was heard (null: there was no silence, or it lasts: then ``silent`` is true),
    ``times`` how many silences on that path the entry stands for.
    """
    return [
        {
            "ago_s": round(now - change.at, 3),
            "why": change.reason.value,
            "endpoint": str(change.path) if change.path else None,
            "silent_s": round(change.silent_s, 3) if change.silent_s is not None else None,
            "silent": change.is_open,
            "times": change.times,
        }
        for change in paths.history
    ]


def describe_candidates(paths: PeerPaths, now: float) -> list[Json]:
    """Return all candidate paths with their probes and answers; the one in use first, then by kind.

    ``rtt_ms`` is milliseconds; ``heard_s`` (since the last packet) and ``distrusted_s`` (from now on) are seconds.
    """
    found = sorted(paths.book, key=lambda c: (c.path != paths.active, c.rank, c.state is PathState.FAILED))
    return [
        {
            **describe_endpoint(paths, c.path),
            "in_use": c.path == paths.active,
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
