"""The side that serves: answers to FIND, GET, STORE and WATCH, and pushes of newer records to watchers.

Amplification: an answer is never longer than its request unless the request carried a token that proves the
sender's address. A watch from an unproven address may be pushed to for as many bytes as its request had.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from functools import lru_cache

from meshnode.base.address import Addr, pack_addr
from meshnode.base.limits import DHT_MAX_BODY, DHT_MAX_CONTACTS, DHT_MAX_PUSHES
from meshnode.base.metrics import describe
from meshnode.discovery.dht.effects import Proven
from meshnode.discovery.dht.kept import Kept, Source
from meshnode.discovery.dht.messages import (
    TOKEN_LENGTH,
    ContactInfo,
    Find,
    Get,
    Nodes,
    Ping,
    Pong,
    Push,
    Reply,
    Status,
    Store,
    Stored,
    Value,
    Watch,
    Watched,
    encode_message,
)
from meshnode.discovery.dht.rpc import MIN_PADDED_BODY
from meshnode.discovery.dht.shared import Shared
from meshnode.discovery.dht.store import Put
from meshnode.discovery.dht.watchers import Watcher, Watchers
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord, latest_ms
from meshnode.identity.sealing import SEAL_OVERHEAD

TOKEN_EPOCH_S = 300.0
PING_ROOM = MIN_PADDED_BODY + SEAL_OVERHEAD  # of a request, left for the ping that asks a possible contact back
REPLY_OVERHEAD = 30  # kind, array, tx, token, and the headers of two byte strings
PUSH_SENDS = 4

BAD_TOKEN = describe("dht_bad_token", "STORE or WATCH with a token that is stale, forged, or for another address")
STORE_FULL = describe("dht_store_full", "records that gave way to others: the store is full, their network had most")
STORE_REFUSED = describe("dht_store_refused_full", "records refused unread: a full store, and their host has most")
STORE_QUOTA = describe("dht_store_quota", "records refused: too many updates of one key")
WATCH_FULL = describe("dht_watch_full", "watches refused: no place for one more of that key, or of that network")
STATEMENTS = describe("dht_statements", "statements that a STORE brought and that hold")
STATEMENTS_REFUSED = describe("dht_statements_refused", "statements of a STORE that do not hold, or come too fast")
PUSHES = describe("dht_pushes", "newer records pushed to watchers")
PUSH_UNPROVEN = describe("dht_push_unproven", "pushes held back: the watcher's address is not proven")
PUSH_FULL = describe("dht_push_full", "pushes not sent: too many unacknowledged")
SHORTENED = describe("dht_answer_shortened", "answers cut so as not to be longer than their request")

_packed = lru_cache(maxsize=4096)(pack_addr)

_STATUS = {
    Put.NEW: Status.OK,
    Put.NEWER: Status.OK,
    Put.SAME: Status.OK,
    Put.OLD: Status.HAVE_NEWER,
    Put.QUOTA: Status.FULL,
}


class Holder:
    """Records and watches kept for others.

    ``on_news(record, now)`` is called for each record that was stored, ``on_proven(peer, addr, now)`` for each token
    that shows that a peer receives where it asks from.
    """

    def __init__(
        self,
        shared: Shared,
        secret: bytes,
        on_news: Callable[[EndpointRecord, float], None],
        on_proven: Callable[[NodeId, Addr, float], None],
    ) -> None:
        self._shared = shared
        self._secret = secret
        self._on_news = on_news
        self._on_proven = on_proven
        self._pushing = 0
        self.watchers = Watchers(is_established=shared.is_established)

    def token(self, sender: NodeId, src: Addr, now: float, *, epochs_ago: int = 0) -> bytes:
        """Return the cookie that shows that ``sender`` receives at ``src``; good for 300 to 600 s."""
        epoch = int(now // TOKEN_EPOCH_S) - epochs_ago
        data = sender.raw + _packed(src) + epoch.to_bytes(8, "big", signed=True)
        return hashlib.blake2b(data, digest_size=TOKEN_LENGTH, key=self._secret).digest()

    def _proven(self, sender: NodeId, src: Addr, token: bytes, now: float) -> bool:
        contact = self._shared.table.get(sender)
        if contact is not None and contact.addr == src and now - contact.answered_at < TOKEN_EPOCH_S:
            return True  # its answer to this node, from there, is a proof as good
        if not token:
            return False
        for age in (0, 1):
            if hmac.compare_digest(token, self.token(sender, src, now, epochs_ago=age)):
                self._shared.effects.append(Proven(sender, src, now - 2 * TOKEN_EPOCH_S))
                self._on_proven(sender, src, now)
                return True
        self._shared.metrics.count(BAD_TOKEN)
        return False

    def answer(
        self, sender: NodeId, src: Addr, request: Ping | Find | Get | Store | Watch, size: int, now: float
    ) -> None:
        """Answer one request whose body had ``size`` bytes.

        An answer to a request without a proven token has at most ``size`` bytes; what does not fit
        is left out (counted).
        """
        reply = self._reply(sender, src, request, size, now)
        if reply is not None:
            self._shared.send(sender, src, encode_message(reply))

    def _reply(
        self, sender: NodeId, src: Addr, request: Ping | Find | Get | Store | Watch, size: int, now: float
    ) -> Reply | None:
        token = self.token(sender, src, now)
        if isinstance(request, Ping):
            return Pong(request.tx, token) if size >= REPLY_OVERHEAD else None
        if isinstance(request, Store):
            return self._store(sender, src, request, token, now)
        if isinstance(request, Watch):
            return self._watch(sender, src, request, token, size, now)
        room = min(size, DHT_MAX_BODY) - REPLY_OVERHEAD
        if room < 0:
            self._shared.metrics.count(SHORTENED)
            return None
        if isinstance(request, Find):
            return Nodes(request.tx, token, self._nearest(request.key, sender, room - PING_ROOM))
        record = self._shared.store.fresh(request.key, self._shared.wall(now))
        encoded = self._shared.kept.find(request.key) if record is None else record.encoded
        if len(encoded) > room:
            self._shared.metrics.count(SHORTENED)
            encoded = b""
        return Value(request.tx, token, self._nearest(request.key, sender, room - len(encoded) - PING_ROOM), encoded)

    def _nearest(self, key: bytes, asker: NodeId, room: int) -> tuple[ContactInfo, ...]:
        chosen: list[ContactInfo] = []
        for contact in self._shared.table.nearest(key, DHT_MAX_CONTACTS, good=True, exclude=asker)[:DHT_MAX_CONTACTS]:
            if contact.addr.host.startswith("fe80"):
                continue  # a link-local address means nothing on other hosts
            room -= 51 if ":" in contact.addr.host else 39
            if room < 0:
                break
            chosen.append(ContactInfo(contact.node_id, contact.addr))
        return tuple(chosen)

    def _store(self, sender: NodeId, src: Addr, request: Store, token: bytes, now: float) -> Reply:
        shared, store = self._shared, self._shared.store
        kept = shared.kept.of(request.record)
        if kept is not None:
            return Stored(request.tx, self._store_statement(kept, sender, src, request, now), token)
        if sender.dht_key not in store and not shared.is_established(sender) and store.refuses(src.host, now):
            shared.metrics.count(STORE_REFUSED)
            return Stored(request.tx, Status.FULL, b"")
        record = shared.open(request.record, now)
        if record is None:
            return Stored(request.tx, Status.INVALID, b"")
        held = store.fresh(record.id.dht_key, shared.wall(now))
        if held is None and not self._proven(sender, src, request.token, now):
            return Stored(request.tx, Status.NEED_TOKEN, token)
        before = len(store)
        put = store.put(record, src.host, now, shared.wall(now))
        if put in (Put.NEW, Put.NEWER):
            self.push(record, now)
            self._on_news(record, now)
        if put is Put.QUOTA:
            shared.metrics.count(STORE_QUOTA)
        elif put is Put.NEW and len(store) == before:
            shared.metrics.count(STORE_FULL)
        return Stored(request.tx, _STATUS[put], token)

    def _store_statement(self, kept: Kept, sender: NodeId, src: Addr, request: Store, now: float) -> Status:
        if not self._proven(sender, src, request.token, now):
            return Status.NEED_TOKEN
        status = Status.FULL
        if kept.rate.take(src, now):
            status = kept.store(request.record, Source(sender, src.host, self._shared.is_established(sender)))
        self._shared.metrics.count(STATEMENTS if status is Status.OK else STATEMENTS_REFUSED)
        return status

    def _watch(self, sender: NodeId, src: Addr, request: Watch, token: bytes, size: int, now: float) -> Reply:
        shared = self._shared
        if request.seconds == 0:
            self.watchers.remove(request.key, sender)
            return Watched(request.tx, Status.OK, b"", b"")
        proven = self._proven(sender, src, request.token, now)
        seq = request.seq if request.seq <= latest_ms(shared.wall(now)) else 0  # learnt by a clock that is ahead
        record = shared.store.fresh(request.key, shared.wall(now))
        news = record.encoded if record is not None and record.seq > seq else b""
        if not proven and REPLY_OVERHEAD + len(news) > size:
            shared.metrics.count(SHORTENED)
            news = b""
        credit = size - REPLY_OVERHEAD - len(news)
        watcher = Watcher(sender, src, now + request.seconds, seq, proven, credit)
        if not self.watchers.add(request.key, watcher, now):
            shared.metrics.count(WATCH_FULL)
            return Watched(request.tx, Status.FULL, token, news)
        return Watched(request.tx, Status.OK if proven else Status.NEED_TOKEN, token, news)

    def push(self, record: EndpointRecord, now: float) -> None:
        """Push the record to all watchers of its key, at once.

        At most ``DHT_MAX_PUSHES`` are unacknowledged; a watcher whose address is not proven gets no more bytes than its
        request had.
        """
        key = record.id.dht_key
        for watcher in self.watchers.waiting(key, record.seq, now):
            if self._pushing >= DHT_MAX_PUSHES:
                self._shared.metrics.count(PUSH_FULL)
                return
            if not watcher.spend(len(record.encoded) + 16):
                self._shared.metrics.count(PUSH_UNPROVEN)
                continue
            self._push_to(key, watcher, record, now)

    def _push_to(self, key: bytes, watcher: Watcher, record: EndpointRecord, now: float) -> None:
        def acknowledged(_: Reply, now: float) -> None:
            self._pushing -= 1
            current = self.watchers.get(key, watcher.id)
            if current is not None:
                current.seq = max(current.seq, record.seq)
                current.proven = current.proven or current.addr == watcher.addr

        def lost(now: float) -> None:
            self._pushing -= 1

        self._pushing += 1
        self._shared.metrics.count(PUSHES)
        self._shared.rpcs.call(
            watcher.id,
            watcher.addr,
            lambda tx: Push(tx, record.encoded),
            now,
            acknowledged,
            lost,
            urgent=PUSH_SENDS if watcher.proven else 1,
            unasked=False,
        )
