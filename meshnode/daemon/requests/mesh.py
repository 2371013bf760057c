"""Requests about what the mesh has in common: members, services and names as they change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from meshnode.daemon.request import Json, Request, request
from meshnode.errors import NotFound
from meshnode.identity.node_id import quoted

if TYPE_CHECKING:
    from meshnode.daemon.context import Daemon
    from meshnode.runtime.runtime import Runtime
    from meshnode.sdk.events import Event


@request("watch", endless=True)
class Watch(Request):
    """Members and services, then what changes, until the client goes away."""

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield what there is, then what changes, until the client goes away.

        Each object has its ``time`` (UTC, RFC 3339) and its ``event``: ``member`` with ``id``, ``name`` and ``status``,
        ``service`` with ``service``, ``id``, ``name``, ``change`` and ``state``, or ``name_conflict``. What happens
        between the first answers and the changes is not missed, but may be told twice.
        """
        import asyncio
        from contextlib import aclosing

        from meshnode.runtime.status import describe_members, describe_services
        from meshnode.sdk.node import runtime_of

        runtime = runtime_of(daemon.node)
        async with aclosing(daemon.node.events()) as events:
            first = asyncio.ensure_future(anext(events))  # begin to listen, then look: nothing is missed
            await asyncio.sleep(0)
            try:
                for member in describe_members(runtime):
                    yield {"time": _now(), "event": "member", **member}
                for service in describe_services(runtime):
                    yield {"time": _now(), "event": "service", "change": "up", **service}
                event = await first
            finally:
                first.cancel()
            while True:
                if (told := _change(runtime, event)) is not None:
                    yield {"time": _now(), **told}
                event = await anext(events)


def _now() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _change(runtime: Runtime, event: Event) -> Json | None:
    """Describe a change of the mesh; None for the other events of a node."""
    from meshnode.runtime.status import name_of
    from meshnode.sdk.events import EventKind

    peer, name = str(event.peer), name_of(runtime, event.peer)
    if event.kind is EventKind.MEMBER:
        return {"event": "member", "id": peer, "status": event.detail, "name": name}
    if event.kind.startswith("service_"):
        change = event.kind.removeprefix("service_")
        told = {"event": "service", "change": change, "service": event.service, "id": peer}
        return {**told, "state": event.detail, "name": name}
    if event.kind is EventKind.NAME_CONFLICT:
        return {"event": "name_conflict", "id": peer, "detail": event.detail}
    if event.kind is EventKind.PROVIDER_CONFLICT:
        return {"event": "provider_conflict", "id": peer, "service": event.service, "detail": event.detail}
    return None


@request("forget")
class Forget(Request):
    """Drop what a node's name, or a service used by its name alone, meant here."""

    name: str

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield the name. Raises NotFound."""
        from meshnode.sdk.node import runtime_of

        runtime = runtime_of(daemon.node)
        if runtime.names is None or not runtime.names.forget(self.name):
            raise NotFound(f"the name {quoted(self.name)} was not used here", hint="nothing needs to be forgotten")
        runtime.drain_directory()
        yield {"name": self.name}


@request("take_rotation")
class TakeRotation(Request):
    """Put the next secret of the mesh in force, and tell the others."""

    rotation: str

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield whether it was taken: it is the authority's, and newer than another; a disk that works has it then."""
        from base64 import b64decode

        from meshnode.sdk.node import runtime_of

        runtime = runtime_of(daemon.node)
        taken = runtime.stack.context.mesh_keys.adopt(b64decode(self.rotation), runtime.clock.monotonic())
        runtime.driver.on_dirty()
        await runtime.state.idle()
        yield {"taken": taken}
