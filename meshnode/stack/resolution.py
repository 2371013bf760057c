"""Where peers are: the sources of records and the resolver, wired to each other and to the live peers.

Every source of this node runs at the same time; see ``discovery/source.py`` for what one is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import partial

from meshnode.base.address import NOWHERE, Addr, is_dialable
from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import MAX_SOUGHT, SEEK_S
from meshnode.base.path import Path, ViaTunnel
from meshnode.discovery.dht import FIRST_KIND, LAST_KIND, Dht, DhtSource, is_congested, place_of
from meshnode.discovery.resolver import Resolved, Resolver
from meshnode.discovery.source import RecordSource
from meshnode.errors import NotFound
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord
from meshnode.nat.local_networks import is_loopback
from meshnode.quic.connection import Connection
from meshnode.quic.stream import Stream
from meshnode.stack.component import Component, tell
from meshnode.stack.context import Context
from meshnode.stack.dht_sending import DhtSending
from meshnode.stack.record_news import RecordNews
from meshnode.stack.session import Session

SLOW_SEEK_S = 20.0  # between searches for any silent peers while this node or the mesh is short of CPU
SLOW_BY_S = 0.1  # it is when its last tick was later than this
SEEK_AFTER_S = 1.0
SILENCE_OVER_S = 120.0  # after the last question of a silence, which come each 60 s at least
WATCH_AGAIN_S = 10.0  # a watch that could not be had, for there were too many, is tried again with a stream after this


class Resolution(Component):
    """All sources of records. Each hands in hints; the components concerned learn of a valid newer record."""

    def __init__(self, context: Context) -> None:
        self.resolver = Resolver(context.metrics)
        self.hints: dict[NodeId, tuple[Path, ...]] = {}
        self.sources: list[RecordSource] = []
        self._context = context
        self._id = context.identity.id
        self._timer = context.timers.timer(partial(_tick, self))
        self._sought: BoundedDict[NodeId, float] = BoundedDict(MAX_SOUGHT)
        self._seek_at = float("-inf")  # of the last search for a silent peer
        self._watched: dict[NodeId, float] = {}  # peers that opened streams, and when to see again to their watch
        dht = Dht(
            context.identity.id,
            rng=context.rng,
            entropy=context.entropy,
            metrics=context.metrics,
            now=context.clock.monotonic(),
            wall=context.clock.wall(),
            seed_role=context.settings.seed_role,
            leaf=context.settings.leaf,
            is_linked=lambda peer: context.peers.connection(peer) is not None,
            late_by=lambda: context.late_by,
        )
        self.resolver.is_barred = dht.records.is_barred = lambda peer: context.is_barred(peer)
        sending = DhtSending(context)
        self.dht = DhtSource(
            dht,
            context.clock,
            context.timers,
            context.metrics,
            sending.send,
            sending.on_proven,
            self._touched,
            context.events.on_contacts,
        )
        self._news = RecordNews(context, self.cached, self.dht.note_record)
        context.successors.on_new.append(partial(_follow, self))
        self._uses_dht = context.settings.dht
        self.statements = self.dht if self._uses_dht else None  # where values are found that are no records
        if self._uses_dht:
            self.kinds = range(FIRST_KIND, LAST_KIND + 1)
            self.add_source(self.dht)

    def add_source(self, source: RecordSource) -> None:
        """Start a source of records, and keep it until the stack is closed.

        It is given this node's record, and the questions that wait, which may be older than it.
        """
        now = self._context.clock.monotonic()
        self.sources.append(source)
        source.start(Intake(self, source), now)
        if self._context.record is not None:
            source.publish(self._context.record, now)
        for peer in self.resolver.waiting():
            source.resolve(peer, now)

    # ---- what sources hand in

    def add_seed(self, peer: NodeId, paths: Iterable[Addr | ViaTunnel], now: float) -> None:
        """Take configured addresses of a peer, which replace earlier ones.

        Those that cannot be dialled are left out; without any, or for this node itself, nothing changes.
        """
        given = list(paths)
        addrs = [path for path in given if isinstance(path, Addr)]
        peer = self._context.successors.of(peer)
        if any(map(is_loopback, addrs)):
            self._context.own.hear_loopback()
        known = _usable(given)
        if peer == self._id or not known:
            return
        self.hints[peer] = known
        if self._uses_dht:
            for addr in filter(is_dialable, addrs):
                self.dht.add_seed(peer, addr, now)
        tell(self._context.hooks.seed, self._context.timers.on_error, peer, now)

    def add_contact(self, peer: NodeId, addr: Addr, now: float) -> None:
        """Take a DHT contact of an earlier run; ignored when the DHT is off."""
        if self._uses_dht and peer != self._id and is_dialable(addr):
            self.dht.add_contact(peer, addr, now)

    def offer(self, encoded: bytes, source: str, now: float) -> EndpointRecord | None:
        """Take a record from ``source``, the name of where it came from.

        Returned when it is valid, newer than what is held, and not this node's own; else None. Paths of the peer get
        its addresses, and questions for it their answer.
        """
        record = self._take(encoded, source, now)
        if record is not None:
            self._news.tell_soon(record.id, now)
        return record

    def pushed(self, peer: NodeId, encoded: bytes, now: float) -> None:
        """Take a record that a live peer sends over its connection: at its pace, before anything is verified."""

        def take(then: float) -> None:
            record = self._take(encoded, "connection", then)
            if record is not None and record.id == peer:
                self._news.tell(peer, then)
            elif record is not None:
                self._news.tell_soon(record.id, then)

        self._news.pace.run(peer, take, now)

    def _take(self, encoded: bytes, source: str, now: float) -> EndpointRecord | None:
        record = self.resolver.offer(encoded, source, now, self._context.clock.wall())
        self._timer.set(self.resolver.next_deadline())
        if record is None:
            return None
        if record.id == self._id:
            self._context.own.on_heard(record, now)
            return None
        self._touched()
        return record

    def introduce(self, encoded: bytes, source: str, now: float) -> EndpointRecord | None:
        """Take a record as ``offer`` does.

        A newer one also makes its node a contact of the DHT and of gossip.
        """
        record = self.offer(encoded, source, now)
        if record is not None:
            if self._uses_dht:
                self.dht.meet(record, now)
            if self._context.gossip is not None:
                self._context.gossip.add_record(record, now)
        return record

    # ---- questions

    def cached(self, peer: NodeId) -> EndpointRecord | None:
        """Return the newest record of a peer that is held and valid now; None when there is none."""
        return self.resolver.get(peer, self._context.clock.wall())

    def resolve(self, peer: NodeId, now: float, answer: Callable[[Resolved | NotFound], None]) -> None:
        """Find the record of ``peer``: from the cache at once, else from the source that is first.

        ``answer`` gets it, or ``NotFound`` when no source has it in time.
        """
        cached = self.cached(peer)
        if cached is not None:
            answer(Resolved(cached, self.resolver.source(peer), 0.0))
            return
        accepted = self.resolver.ask(peer, now, answer)
        self._timer.set(self.resolver.next_deadline())
        if accepted:
            self.look_up(peer, now)

    def look_up(self, peer: NodeId, now: float) -> None:
        """Ask every source for a record, whatever the cache holds.

        What comes is handled like any record that a source hands in.
        """
        _have_each(self, lambda source: source.resolve(peer, now))
        self._context.events.on_dirty()

    def watch(self, peer: NodeId, now: float, *, unasked: bool = False) -> None:
        """Have newer records of ``peer`` pushed to this node by the DHT, until its session is gone.

        Nothing happens when the DHT is off, nor when half of the watches are for peers that came ``unasked``.
        """
        if self._uses_dht:
            cached = self.cached(peer)
            self.dht.watch(peer, cached.seq if cached is not None else 0, now, unasked=unasked)

    def watch_if_used(self, peer: NodeId, now: float, *, dialling: bool = False) -> None:
        """Watch ``peer``, unless gossip alone has use for the connection.

        Gossip needs no watch: it carries the records of its neighbours and of the seeds itself, to nodes that are
        connected. So a seed is watched while this node is ``dialling`` it.
        """
        use = self._context.use
        if use is None or use.is_used(peer) or (dialling and peer in self.hints):
            self.watch(peer, now)
        elif not dialling:
            self.dht.unwatch(peer, now)  # its dial is over

    def seek(self, peer: NodeId, now: float) -> None:
        """Renew the watches of a peer that answers nowhere, and ask the sources for it at most every ``SEEK_S``.

        A lookup is 20 to 30 requests, and all neighbours of a node that is gone miss it at once. So for a peer that
        gossip alone has use for, which tells of a moved one too, the first comes after ``SEEK_AFTER_S`` of silence.
        While this process comes late, or many requests time out, one peer in ``SLOW_SEEK_S`` is sought, one without
        other use in three times that: most that are silent then have not moved.
        """
        context = self._context
        is_used = context.gossip is None or context.use is None or context.use.is_used(peer)
        since = now - self._sought.get(peer, float("-inf"))
        if context.late_by > SLOW_BY_S or is_congested(self.dht.dht):
            if now - self._seek_at < (SLOW_SEEK_S if is_used else 3 * SLOW_SEEK_S):
                return
        elif since > SILENCE_OVER_S and not is_used:
            self._sought.put(peer, now - SEEK_S + SEEK_AFTER_S)
            return
        elif since < SEEK_S:
            self.dht.rewatch(peer, now)
            return
        self._seek_at = now
        self.dht.rewatch(peer, now)
        self._sought.put(peer, now)
        self.look_up(peer, now)

    def contacts(self) -> list[NodeId]:
        """Return the ids of the DHT's contacts; none when it is off."""
        return [peer for peer, _ in self.dht.dht.contacts()] if self._uses_dht else []

    def contact_at(self, peer: NodeId, now: float) -> Path | None:
        """Return where a contact of the DHT has just answered; None for all others, and when it is off."""
        return place_of(self.dht.dht, peer, now) if self._uses_dht else None

    def home_of(self, peer: NodeId) -> Hashable | None:
        """Return the network where a contact of the DHT answered, the id itself of a seed; None for all others."""
        if peer in self.hints:
            return peer
        return self.dht.dht.home_of(peer) if self._uses_dht else None

    # ---- what happens

    def moving(self, now: float) -> None:
        """Renew the watches from this node's new addresses, before its new record is out."""
        if self._uses_dht:
            self.dht.moving(now)

    def moved(self, now: float) -> None:
        """Tell the sources that this node has moved; its new record has been published."""
        _have_each(self, lambda source: source.moved(now))

    def on_own_record(self, record: EndpointRecord, now: float) -> None:
        """Publish this node's record by every source."""
        _have_each(self, lambda source: source.publish(record, now))

    def on_session_gone(self, session: Session, now: float) -> None:
        """End the watch of that peer."""
        self._news.pace.forget(session.peer)
        self._watched.pop(session.peer, None)
        self.dht.unwatch(session.peer, now)

    def takes_stream(self, connection: Connection, stream: Stream) -> bool:
        """Watch a peer that uses this node's services; the stream is for another component."""
        peer, now = connection.peer, self._context.clock.monotonic()
        if self._uses_dht and now >= self._watched.get(peer, now):
            self._watched[peer] = now + WATCH_AGAIN_S
            self.watch(peer, now, unasked=not connection.dialler)
        return False

    def on_sealed(self, sender: NodeId, body: bytes, source: Path, size: int, now: float) -> None:
        """Give a DHT message to the core."""
        self.dht.handle(sender, body, source if isinstance(source, Addr) else NOWHERE, size, now)

    def flush(self, now: float) -> None:
        """Carry out what the DHT wants done."""
        self.dht.flush(now)

    def _touched(self) -> None:
        self._context.dirty[self] = None


def _tick(resolution: Resolution, now: float) -> None:
    resolution.resolver.tick(now)
    resolution._timer.set(resolution.resolver.next_deadline())


def _have_each(resolution: Resolution, do: Callable[[RecordSource], None]) -> None:
    """Have each source do something; one that fails keeps no other from it."""
    for source in resolution.sources:
        try:
            do(source)
        except Exception as error:
            resolution._context.timers.on_error(error)


def _follow(resolution: Resolution, old: NodeId, new: NodeId) -> None:
    """Have a configured seed be the key that has replaced its key."""
    seeds = [path for path in resolution.hints.pop(old, ()) if isinstance(path, Addr | ViaTunnel)]
    resolution.add_seed(new, seeds, resolution._context.clock.monotonic())


def _usable(paths: Iterable[Addr | ViaTunnel]) -> tuple[Addr | ViaTunnel, ...]:
    return tuple(path for path in paths if isinstance(path, ViaTunnel) or is_dialable(path))


class Intake:
    """The ``Sink`` of one source: takes what it hands in until the stack is closed."""

    def __init__(self, resolution: Resolution, source: RecordSource) -> None:
        self._resolution = resolution
        self._source = source
        self._context = resolution._context

    def record(self, encoded: bytes, via: str = "") -> None:
        if not self._context.links.closed:
            take = self._resolution.introduce if self._source.introduces else self._resolution.offer
            take(encoded, via or self._source.name, self._context.clock.monotonic())
            self._context.events.on_dirty()

    def seed(self, peer: NodeId, addrs: Iterable[Addr | ViaTunnel]) -> None:
        if not self._context.links.closed:
            self._resolution.add_seed(peer, addrs, self._context.clock.monotonic())
            self._context.events.on_dirty()

    def is_wanted(self, peer: NodeId) -> bool:
        return self._resolution.resolver.asked(peer)
