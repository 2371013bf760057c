"""A node's exposes and forwards as plain JSON, as ``status`` and the doctor have them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from meshnode.daemon.context import Daemon
from meshnode.services.check import why_not
from meshnode.services.expose import Expose
from meshnode.services.forward import Forward
from meshnode.services.registry import ServiceBook

MAX_LOOKED_AT = 64  # services and forwards that the doctor asks: each has a connection under way
Json = dict[str, Any]


def describe_exposes(book: ServiceBook) -> list[Json]:
    """Return what is exposed: ``name``, ``target``, ``allow``, ``state``, ``last_error``, ``usage``, and ``targets``.

    ``last_error`` is why no target answered the last time that it was asked, null when one did.
    """
    return _described(book.exposes.values())


def describe_passing(book: ServiceBook) -> list[Json]:
    """Return what is exposed as long as a program runs, in the same form."""
    return _described(book.passing.values())


def _described(exposes: Iterable[Expose]) -> list[Json]:
    return [
        {
            "name": e.name,
            "target": e.target,
            "allow": list(e.allow),
            "state": "up" if e.pool.healthy else "failing",
            "last_error": e.error or None,
            "targets": [
                {"target": m.end.target, "connections": m.users, "last_error": m.error or None} for m in e.pool.members
            ],
            "usage": e.tolls.to_json(),
        }
        for e in exposes
    ]


def describe_forwards(book: ServiceBook) -> list[Json]:
    """Return what is forwarded: ``listen``, ``to``, ``sticky``, ``connections``, ``usage``, ``last_error``, ``error``.

    ``last_error`` is of the last connection, null when that one was opened: ``code``, ``message``, ``hint`` and
    ``ago_s``. ``error`` is there while nothing listens, and says why.
    """
    return [
        {
            "listen": f.listen,
            "to": f.to,
            "sticky": f.sticky,
            "connections": f.connections,
            "usage": f.tolls.to_json(),
            "last_error": _last_error(f),
            **({"error": f.error} if f.error else {}),
        }
        for f in book.forwards.values()
    ]


def _last_error(forward: Forward) -> Json | None:
    if forward.failed is None:
        return None
    error, at = forward.failed
    return {**error.to_json()["error"], "ago_s": round(asyncio.get_running_loop().time() - at, 3)}


async def look_at_services(daemon: Daemon) -> Json:
    """Return ``exposes`` and ``forwards`` as the doctor wants them, asked now and all at once.

    An exposed service has ``target_error`` ("" when the target accepts connections), a forward ``problem``: null, or
    why a connection would fail.
    """
    book = daemon.book
    exposes, forwards = list(book.exposes.values())[:MAX_LOOKED_AT], list(book.forwards.values())[:MAX_LOOKED_AT]
    targets = asyncio.gather(*(expose.probe() for expose in exposes))
    problems = asyncio.gather(*(why_not(daemon.node, f.peer, f.service, f.trusted) for f in forwards))
    found = [problem.to_json()["error"] if problem is not None else None for problem in await problems]
    return {
        "exposes": [
            {**told, "target_error": error} for told, error in zip(describe_exposes(book), await targets, strict=False)
        ],
        "forwards": [
            {**told, "problem": problem} for told, problem in zip(describe_forwards(book), found, strict=False)
        ],
    }
