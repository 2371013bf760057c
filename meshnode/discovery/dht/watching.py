"""The watcher's side: short, renewed watches at a few holders of each watched key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field

from meshnode.base.address import Addr
from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import DHT_MAX_LOOKUPS, DHT_MAX_WATCH_S, DHT_MAX_WATCHED
from meshnode.base.metrics import describe
from meshnode.base.timers import Timer, phase_of, shared_time
from meshnode.base.value import state
from meshnode.discovery.dht.effects import RecordPushed
from meshnode.discovery.dht.lookup import Lookup
from meshnode.discovery.dht.messages import Push, Reply, Status, Watch, Watched
from meshnode.discovery.dht.shared import R, Shared
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord, latest_ms

RENEW_S = 60.0
HOLDERS = 3
SEED_HOLDERS = 2
LOOKUP_EVERY = 60  # renewals: an hour; the nearest nodes change slowly, and a holder that is gone is replaced at once
RETRY_S = 2.0
MAX_RETRY_S = 60.0
REFUSED_S = 3_600.0  # a holder that had no place is not asked again: those that it had one for renew theirs
SLOW_RETRIES = 8  # times as long while many requests time out
URGENT_SENDS = 6
MAX_ENDED = 64
BURST = 64  # watches renewed at once after a move; the rest follow, so many every 10 ms

PUSH_UNWANTED = describe("dht_push_unwanted", "pushed records of keys that we do not watch: dropped unanswered")
WATCHED_FULL = describe("dht_watched_full", "watches not started: we watch too many ids")

StartGet = Callable[[bytes, float, Callable[[Lookup, float], None]], None]


@state
class _Watched:
    id: NodeId
    seq: int
    holders: dict[NodeId, Addr] = field(default_factory=dict)
    refused: dict[NodeId, float] = field(default_factory=dict)  # holders without a place for it, and until when
    short_looks: int = 0  # lookups in a row because holders are missing
    renewals: int = 0
    looking: bool = False
    retries: int = 0
    retry_timer: Timer | None = None
    timer: Timer | None = None


class Watching:
    """All ids that this node watches."""

    def __init__(self, shared: Shared, get: StartGet) -> None:
        self._shared = shared
        self._get = get
        self._phase = phase_of(bytes(shared.own))
        self._watched: dict[bytes, _Watched] = {}
        self._ended: BoundedDict[bytes, None] = BoundedDict(MAX_ENDED)  # keys watched no longer
        self._looks = 0  # lookups that run

    def watch(self, peer: NodeId, seq: int, now: float, *, unasked: bool = False) -> None:
        """Begin to hear of every record of ``peer`` newer than ``seq``.

        Refused (counted) past ``DHT_MAX_WATCHED`` ids, and past half of that when ``unasked``: for a peer that came by
        itself, for ids are free. Renewed about every ``RENEW_S``.
        """
        key = peer.dht_key
        known = self._watched.get(key)
        if known is not None:
            known.seq = max(known.seq, seq)
            return
        if len(self._watched) >= (DHT_MAX_WATCHED // 2 if unasked else DHT_MAX_WATCHED):
            self._shared.metrics.count(WATCHED_FULL)
            return
        watched = self._watched[key] = _Watched(peer, seq)
        self._ended.pop(key, None)
        self._join(watched, {}, now)
        if self._shared.rpcs.budget.congested and watched.holders:
            self._retry(watched, now)  # the seeds do until a lookup, 20 to 30 requests, is no burden
        else:
            self._look(watched, now)
        self._renew_later(watched, now)

    def unwatch(self, peer: NodeId, now: float) -> None:
        """Stop watching; holders are told once, and forget it anyway."""
        watched = self._watched.pop(peer.dht_key, None)
        if watched is None:
            return
        self._ended.put(peer.dht_key, None)
        if watched.timer is not None:
            watched.timer.cancel()
        for holder, addr in watched.holders.items():
            self._register(watched, holder, addr, now, seconds=0)

    def _known(self, watched: _Watched, now: float) -> int:
        """Return the newest seq known; one that this node's clock took when it was ahead is forgotten."""
        if watched.seq > latest_ms(self._shared.wall(now)):
            watched.seq = 0
        return watched.seq

    def rewatch_all(self, now: float) -> None:
        """Renew all watches from this node's new address, ``BURST`` at once and the rest in steps of 10 ms.

        Holders push newer records to the address that renewed last, so this comes before all else in a move.
        """
        for i, key in enumerate(list(self._watched)):
            if i < BURST:
                self._again(key, now)
            else:
                self._shared.timers.at(now + 0.01 * (i // BURST), lambda t, key=key: self._again(key, t))  # type: ignore[misc]

    def rewatch(self, peer: NodeId, now: float) -> None:
        """Ask the holders of one watch now, fast."""
        self._again(peer.dht_key, now)

    def _again(self, key: bytes, now: float) -> None:
        watched = self._watched.get(key)
        if watched is None:
            return
        for holder, addr in watched.holders.items():
            where = self._shared.address_of(holder, addr)
            self._register(watched, holder, where or addr, now, urgent=URGENT_SENDS)
        if not watched.holders:
            self._look(watched, now)

    def _join(self, watched: _Watched, holders: dict[NodeId, Addr], now: float) -> None:
        """Watch at these holders and at the seeds."""
        seeds = [(s, a) for s, a in self._shared.seeds.items() if s != watched.id][:SEED_HOLDERS]
        for holder, addr in [*holders.items(), *seeds]:
            if holder not in watched.holders and watched.refused.get(holder, now) <= now:
                where = self._shared.address_of(holder, addr) or addr
                watched.holders[holder] = where
                self._register(watched, holder, where, now)

    def _look(self, watched: _Watched, now: float) -> None:
        """Find holders: later where half of the lookups that may run are for watches. Others cause those by coming."""
        if watched.looking:
            return
        if self._looks >= max(1, min(DHT_MAX_LOOKUPS, self._shared.rpcs.budget.lookups) // 2):
            self._retry(watched, now)
            return
        watched.looking = True
        self._looks += 1
        key = watched.id.dht_key

        def found(lookup: Lookup, now: float) -> None:
            watched.looking = False
            self._looks -= 1
            if self._watched.get(key) is not watched:
                return
            if lookup.best is not None:
                self.on_record(lookup.best, now)
            watched.refused = {holder: until for holder, until in watched.refused.items() if until > now}
            nearest = [c for c in lookup.closest(R) if c.id != watched.id and c.id not in watched.refused]
            newest = 0 if lookup.best is None else lookup.best.seq
            chosen = sorted(nearest, key=lambda c: (c.seq is None or c.seq < newest, not c.priced))[:HOLDERS]
            if not chosen:
                if all(c.id not in watched.refused for c in lookup.closest(R)):  # none answered that has no place
                    self._retry(watched, now)
                return
            watched.retries = 0
            keep = [c.id for c in chosen] + list(self._shared.seeds)
            for holder in [h for h in watched.holders if h not in keep]:
                del watched.holders[holder]
            self._join(watched, {c.id: c.addr for c in chosen}, now)

        self._get(key, now, found)

    def _retry(self, watched: _Watched, now: float) -> None:
        if watched.looking or (watched.retry_timer is not None and watched.retry_timer.live):
            return
        # holders that are only slow are not replaced by others at once
        first = RETRY_S * (SLOW_RETRIES if self._shared.rpcs.budget.congested else 1)
        wait = min(MAX_RETRY_S, first * 2**watched.retries)
        watched.retries = min(watched.retries + 1, 10)

        def again(now: float) -> None:
            if self._watched.get(watched.id.dht_key) is watched:
                self._look(watched, now)

        watched.retry_timer = self._shared.timers.at(now + self._shared.jittered(wait), again)

    def _renew_later(self, watched: _Watched, now: float) -> None:
        key = watched.id.dht_key
        at = shared_time(now + self._shared.jittered(RENEW_S, 0.1), self._phase)  # in one wake with keepalives
        watched.timer = self._shared.timers.at(at, lambda t: self._renew(key, t))

    def _renew(self, key: bytes, now: float) -> None:
        watched = self._watched.get(key)
        if watched is None:
            return
        self._renew_later(watched, now)
        watched.renewals += 1
        for holder, addr in list(watched.holders.items()):
            self._register(watched, holder, self._shared.address_of(holder, addr) or addr, now)
        self._join(watched, {}, now)
        if watched.renewals % LOOKUP_EVERY == 0 or self._is_short(watched):
            self._look(watched, now)

    def _is_short(self, watched: _Watched) -> bool:
        """Return whether holders are missing and a lookup is due for it: while none helps, ever more rarely."""
        if len(watched.holders) >= min(HOLDERS, len(self._shared.table)):
            watched.short_looks = 0
            return False
        if watched.renewals % min(1 << watched.short_looks, LOOKUP_EVERY):
            return False
        watched.short_looks += 1
        return True

    def _register(
        self,
        watched: _Watched,
        holder: NodeId,
        addr: Addr,
        now: float,
        *,
        urgent: int = 0,
        token: bytes = b"",
        seconds: int = DHT_MAX_WATCH_S,
    ) -> None:
        key = watched.id.dht_key
        shown = token or self._shared.token_of(holder, now)

        def answered(reply: Reply, now: float) -> None:
            if not isinstance(reply, Watched) or self._watched.get(key) is not watched:
                return
            if reply.record:
                record = self._shared.open(reply.record, now, key)
                if record is not None:
                    self.on_record(record, now)
            if reply.status is Status.NEED_TOKEN and not token:
                self._register(watched, holder, addr, now, urgent=urgent, token=reply.token)
            elif reply.status is Status.FULL:
                watched.holders.pop(holder, None)
                watched.refused[holder] = now + REFUSED_S

        def lost(now: float) -> None:
            if self._watched.get(key) is not watched or seconds == 0:
                return
            if self._shared.rpcs.budget.congested:
                return  # it is slow rather than gone, and is asked again
            watched.holders.pop(holder, None)
            if len(watched.holders) < HOLDERS:
                self._retry(watched, now)

        self._shared.rpcs.call(
            holder,
            addr,
            lambda tx: Watch(tx, shown, key, self._known(watched, now), seconds),
            now,
            answered,
            lost,
            pad=not shown,
            urgent=urgent,
            shown=shown,
        )

    def on_push(self, push: Push, now: float) -> bool:
        """Take a push; return True when it deserves an acknowledgement (valid, of a watched id)."""
        record = self._shared.open(push.record, now)
        if record is None:
            return False
        if record.id.dht_key in self._ended:
            return True  # it was under way: unacknowledged it would count as this node's silence
        if record.id.dht_key not in self._watched:
            self._shared.metrics.count(PUSH_UNWANTED)
            return False
        self.on_record(record, now)
        return True

    def learn(self, record: EndpointRecord) -> None:
        """Note a record that came by another way: it is no news any more."""
        watched = self._watched.get(record.id.dht_key)
        if watched is not None:
            watched.seq = max(watched.seq, record.seq)

    def on_record(self, record: EndpointRecord, now: float) -> None:
        """Take a verified record from any source: news when its id is watched and its seq is newer.

        News is an effect RecordPushed; each seq is told once.
        """
        watched = self._watched.get(record.id.dht_key)
        if watched is not None and record.seq > self._known(watched, now):
            watched.seq = record.seq
            self._shared.effects.append(RecordPushed(record))
