"""Requests about what the mesh has in common: members, services and names as they change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from meshnode.daemon.request import Json, Request, request
from meshnode.errors import NotFound

if TYPE_CHECKING:
    from meshnode.daemon.context import Daemon
    from meshnode.runtime.runtime import Runtime
    from meshnode.sdk.events import Event


@request("watch", endless=True)
class Watch(Request):
    """Members and services, then what changes, until the client goes away."""

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield one object a member, a service and a change."""
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
                    yield {"event": "member", **member}
                for service in describe_services(runtime):
                    yield {"event": "service", "change": "up", **service}
                event = await first
            finally:
                first.cancel()
            while True:
                if (told := _change(runtime, event)) is not None:
                    yield told
                event = await anext(events)


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
    return None


@request("forget")
class Forget(Request):
    """Drop what a node's name meant here."""

    name: str

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield the name. Raises NotFound."""
        from meshnode.sdk.node import runtime_of

        runtime = runtime_of(daemon.node)
        if runtime.names is None or not runtime.names.forget(self.name):
            raise NotFound(f"the name {self.name!r} was not used here", hint="nothing needs to be forgotten")
        runtime.drain_directory()
        yield {"name": self.name}
