"""What happens to a node, as ``node.events()`` tells it."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from meshnode.base.log_lines import Logger, LogRate, rated_logger
from meshnode.base.metrics import Metrics
from meshnode.base.path import Path
from meshnode.base.value import frozen
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection as Link

if TYPE_CHECKING:
    from meshnode.directory.names import NameConflict
    from meshnode.directory.providers import ProviderConflict
    from meshnode.directory.services import ServiceChanged
    from meshnode.gossip.effects import MemberChanged

log = rated_logger("meshnode.names")

MAX_EVENTS = 256  # a slow reader of events() loses its oldest


class EventKind(StrEnum):
    """What happened. Each is also a ``str``, as it stands in JSON: ``EventKind.PATH == "path"``."""

    CONNECTED = "connected"
    """A connection to ``peer`` is ready."""
    DISCONNECTED = "disconnected"
    """The connection to ``peer`` is over; ``detail`` is the reason, empty when it was closed in the ordinary way."""
    PATH = "path"
    """The path to ``peer`` changed; ``detail`` is ``OLD -> NEW: REASON``."""
    MEMBER = "member"
    """The mesh's belief about ``peer`` changed; ``detail`` is ``alive``, ``suspect``, ``gone`` or ``left``."""
    SERVICE_UP = "service_up"
    """``peer`` offers ``service``; ``detail`` is the instance's state."""
    SERVICE_CHANGED = "service_changed"
    """An instance of ``service`` on ``peer`` has another state (``detail``), load or metadata."""
    SERVICE_DOWN = "service_down"
    """``peer`` offers ``service`` no more."""
    NAME_CONFLICT = "name_conflict"
    """``peer`` claims a name that another node had first; ``detail`` says what it means here."""
    PROVIDER_CONFLICT = "provider_conflict"
    """``peer`` offers ``service`` too, which means another node here; ``detail`` says which one keeps it."""


@frozen
class Event:
    """Something that happened.

    Attributes:
        kind: What happened; decides what ``detail`` says.
        peer: The node that it happened to; for name conflicts the one that claims the name too.
        detail: More, for people and logs; see ``EventKind``.
        service: The service's name, for the four kinds about services; else empty.
    """

    kind: EventKind
    peer: NodeId
    detail: str = ""
    service: str = ""


class EventIteration(AsyncGenerator[Event, None]):
    """An iteration whose waits may be cancelled, as by a time limit, and made again: one of a function would end."""

    async def asend(self, value: None) -> Event:
        """Return the next event."""
        return await self.__anext__()

    async def athrow(self, typ: Any, val: Any = None, tb: Any = None, /) -> Event:
        """End the iteration, and raise."""
        await self.aclose()
        raise typ if val is None else val


class _Iteration(EventIteration):
    """What ``events()`` returns. It is told of what happens from its making on."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Event | None] = asyncio.Queue(MAX_EVENTS)  # None ends it
        self._is_over = False  # nothing is queued any more

    async def __anext__(self) -> Event:
        event = await self.queue.get()
        if event is None:
            self.queue.put_nowait(None)  # for what waits beside, or asks again
            raise StopAsyncIteration
        return event

    async def aclose(self) -> None:
        """End the iteration, with what waits for its next event."""
        self._is_over = True
        while not self.queue.empty():
            self.queue.get_nowait()
        self.queue.put_nowait(None)

    def take(self, event: Event | None) -> bool:
        """Queue an event; False when the oldest had to go for it."""
        if self._is_over:
            return True
        self._is_over = event is None
        had_room = not self.queue.full()
        if not had_room:
            self.queue.get_nowait()
        self.queue.put_nowait(event)
        return had_room


class EventStreams:
    """Hands each event to every running ``events()`` iteration, by a bounded queue each."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._iterations: weakref.WeakSet[_Iteration] = weakref.WeakSet()
        self._log: Logger = log

    def begin(self, rate: LogRate) -> None:
        """Log by the node's rate from now on."""
        self._log = rate.of_node(log)

    def on_connection(self, link: Link, up: bool) -> None:
        """A connection came or went."""
        reason = "" if up or link.error is None else link.error.message
        self._emit(Event(EventKind.CONNECTED if up else EventKind.DISCONNECTED, link.peer, reason))

    def on_path(self, peer: NodeId, old: Path | None, new: Path | None, why: str) -> None:
        """A peer's path changed."""
        self._emit(Event(EventKind.PATH, peer, f"{old} -> {new}: {why}"))

    def on_service(self, effect: ServiceChanged) -> None:
        """An instance of a service came, changed or went."""
        instance = effect.instance
        kind = EventKind(f"service_{effect.change}")
        self._emit(Event(kind, instance.node, instance.state, instance.service))

    def on_member(self, change: MemberChanged) -> None:
        """The mesh believes something else of a member."""
        self._emit(Event(EventKind.MEMBER, change.peer, change.status.value))

    def on_conflict(self, effect: NameConflict | ProviderConflict) -> None:
        """A name or a service that is used here is another node's too."""
        from meshnode.directory.providers import ProviderConflict  # not there in a function, which has no gossip

        holder, rival = effect.holder.short, effect.rival.short
        if isinstance(effect, ProviderConflict):
            name, detail = effect.service, f"{effect.service} stays with {effect.holder}"
            self._log.warning(
                "the service %s is offered by %s too; by its name alone it is %s's here", name, rival, holder
            )
            self._emit(Event(EventKind.PROVIDER_CONFLICT, effect.rival, detail, name))
            return
        if effect.is_pinned:
            self._log.warning("the name %s is claimed by %s too; it stays with %s here", effect.name, rival, holder)
            detail = f"{effect.name} stays with {effect.holder}"
        else:
            self._log.warning(
                "the name %s is claimed by %s and %s: use an id until one gives up", effect.name, holder, rival
            )
            detail = f"{effect.name} is claimed by {effect.holder} too, and means neither"
        self._emit(Event(EventKind.NAME_CONFLICT, effect.rival, detail))

    def end(self) -> None:
        """End every iteration, once it has read what is queued."""
        self._emit(None)

    def _emit(self, event: Event | None) -> None:
        for iteration in self._iterations:
            if not iteration.take(event):
                self._metrics.count("events_lost")

    def listen(self) -> AsyncGenerator[Event, None]:
        """Return an iteration over what happens from now on; a slow reader loses the oldest."""
        iteration = _Iteration()
        self._iterations.add(iteration)
        return iteration
