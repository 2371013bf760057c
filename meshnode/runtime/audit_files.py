"""The audit log of one node on disk: ``HOME/audit/NUMBER.jsonl``, sealed and removed by size, and the signed ``head``.

``note`` queues an entry and returns; a thread writes what has come together, makes it last (fdatasync), then the head.
An entry is acknowledged when ``settled`` returns: kill -9 or a crash of the host loses nothing that was. A disk that is
full or slow holds nothing up: it is told in ``degraded``, and what no longer fits the queue is counted in the log.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic

from meshnode.base.bounded import BoundedDict
from meshnode.base.files import make_private, write_atomic
from meshnode.base.limits import (
    AUDIT_PEER_BURST,
    AUDIT_PEER_RATE,
    AUDIT_QUEUE,
    AUDIT_SEGMENT,
    AUDIT_SEGMENTS,
    MAX_LOG_PEERS,
)
from meshnode.base.metrics import Metrics, describe
from meshnode.base.refusals import refusal
from meshnode.base.token_bucket import TokenBucket
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.runtime.background import begin, os_error
from meshnode.trust.audit import Chain, Kind, hash_of, parse_line

log = logging.getLogger("meshnode.audit")

FOLDER, HEAD = "audit", "head"
GATHER_S = 0.1  # entries within this share a write
RETRY_S = 5.0
TAIL = 65_536  # bytes read to find the last line: one has at most some 2 kB
CHECKPOINT_LINES = 256

LOST = describe("audit_lost", "audit entries that were not written: too many of one peer, or the disk takes none")

LOST_S = 10.0  # between lines about what was not kept

LostKey = tuple[str | None, str | None, object, object]
NO_KEY: LostKey = (None, None, None, None)
Entry = tuple[float, Kind, dict[str, object]]


class Lost:
    """Entries that are counted instead of written, until the log says how many.

    Attributes:
        told: When it last did, in the loop's time.
    """

    def __init__(self, now: float) -> None:
        self.told = now
        self._counts: dict[LostKey, int] = {}

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, kind: Kind, peer: str | None, fields: dict[str, object]) -> None:
        """Count an entry. Services that were opened are counted apart: they exist."""
        service = fields.get("service") if kind is Kind.OPENED else None
        key = (kind, peer, fields.get("session"), service) if len(self._counts) < AUDIT_QUEUE else NO_KEY
        self._counts[key] = self._counts.get(key, 0) + 1

    def take(self, now: float) -> list[dict[str, object]]:
        """Return the fields of the lines that tell of them, and begin to count again."""
        self.told, counts = now, self._counts
        self._counts = {}
        names = "of", "peer", "session", "service"
        return [{"count": count, **dict(zip(names, key, strict=True))} for key, count in counts.items()]


class AuditFiles:
    """The writer of a log. It belongs to one asyncio loop and to the process that holds the home's lock."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        home: Path,
        identity: Identity,
        wall: Callable[[], float],
        metrics: Metrics,
    ) -> None:
        self.folder = home / FOLDER
        self._loop = loop
        self._wall = wall
        self._metrics = metrics
        self._writer = Writer(self.folder, identity)
        self._queue: deque[Entry] = deque()
        self._peers: BoundedDict[NodeId, TokenBucket] = BoundedDict(MAX_LOG_PEERS)
        self._lost = Lost(loop.time())
        self._waiting: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._busy = False
        self._problem = ""
        self._lock = threading.Lock()  # of the writer, and of what it has been given
        self._writing: list[Entry] = []

    def note(self, kind: Kind, peer: NodeId | None = None, /, **fields: object) -> None:
        """Queue an entry; those of one peer above its rate are counted instead."""
        self.note_by(peer, kind, peer, **fields)

    def note_by(self, cause: NodeId | None, kind: Kind, peer: NodeId | None, /, **fields: object) -> None:
        """Queue an entry that another node than its peer has caused, at the rate of that; None has no rate."""
        if cause is not None and not self._rate(cause).take(1, monotonic()):
            self._lose(kind, str(cause), fields)
        elif len(self._queue) >= AUDIT_QUEUE:
            self._lose(kind, None, {})
        else:
            self._queue.append((self._wall(), kind, fields if peer is None else {"peer": str(peer), **fields}))
        if self._timer is None and not self._busy:
            self._timer = self._loop.call_later(GATHER_S, self._write)

    async def settled(self) -> None:
        """Return when all that was noted is on the disk. Raises OSError: it is not, and will be tried again."""
        if not self._queue and not self._busy and not self._problem:
            return
        done: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(done)
        if not self._busy:
            self._write()
        await done

    def degraded(self) -> list[str]:
        """Return why the log is not written, in words; empty while it is."""
        return [self._problem] if self._problem else []

    def finish(self) -> None:
        """Write what waits here and now, once, and seal it; for the end of the node."""
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            last = [*self._writing, *self._taken(all=True)]
            try:
                self._writer.write(last, seal=True)
            except Exception as error:  # whatever is wrong with the log, the node ends
                reason, _ = refusal(os_error(error), self.folder)
                log.warning("the last %d entries of the audit log were not written: %s", len(last), reason)
            else:
                self._writing = []

    # ---- inside

    def _rate(self, peer: NodeId) -> TokenBucket:
        bucket = self._peers.get(peer)
        if bucket is None:
            bucket = self._peers[peer] = TokenBucket(AUDIT_PEER_RATE, AUDIT_PEER_BURST, monotonic())
        return bucket

    def _lose(self, kind: Kind, peer: str | None, fields: dict[str, object]) -> None:
        self._metrics.count(LOST)
        self._lost.add(kind, peer, fields)

    def _taken(self, *, all: bool) -> list[Entry]:
        """Take what waits; now and then, or with ``all``, also a word of what was not kept."""
        taken, now = list(self._queue), self._loop.time()
        self._queue.clear()
        if self._lost and (all or now >= self._lost.told + LOST_S):
            taken += [(self._wall(), Kind.LOST, fields) for fields in self._lost.take(now)]
        return taken

    def _write(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._busy = None, True
        batch, waiting = self._taken(all=bool(self._waiting)), self._waiting
        self._waiting, self._writing = [], batch
        try:
            begin(self._work, batch, waiting)
        except RuntimeError:  # there is no thread to be had
            self._work(batch, waiting)

    def _work(self, batch: list[Entry], waiting: list[asyncio.Future[None]]) -> None:
        failed: OSError | None = None
        try:
            with self._lock:
                if self._writing is batch:  # else ``finish`` has written it
                    self._writer.write(batch)
                    self._writing = []
        except Exception as error:
            failed = os_error(error)
        with suppress(RuntimeError):  # the loop was closed
            self._loop.call_soon_threadsafe(self._done, batch, waiting, failed)

    def _done(self, batch: list[Entry], waiting: list[asyncio.Future[None]], failed: OSError | None) -> None:
        self._busy = False
        if failed is not None:
            reason, hint = refusal(failed, self.folder)
            if not self._problem:
                log.warning("cannot write the audit log: %s; the node goes on. To mend it: %s", reason, hint)
            self._problem = f"the audit log cannot be written: {reason} (tried again by itself)"
            room = AUDIT_QUEUE - len(self._queue)
            for _, kind, _ in batch[room:]:
                self._lose(kind, None, {})
            self._queue.extendleft(reversed(batch[:room]))
        elif self._problem:
            self._problem = ""
            log.warning("the audit log is written again")
        for caller in waiting:
            if not caller.done() and failed is None:
                caller.set_result(None)
            elif not caller.done() and failed is not None:
                caller.set_exception(failed)
        if self._waiting:  # they came while this was written
            self._write()
        elif (self._queue or self._lost) and self._timer is None:
            wait = RETRY_S if failed is not None else GATHER_S if self._queue else LOST_S
            self._timer = self._loop.call_later(wait, self._write)


class Writer:
    """Appends lines to the last segment, and begins another when it is full. Every method may raise OSError."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        self._folder = folder
        self._chain = Chain(identity)
        self._number = 0
        self._size = 0
        self._since_checkpoint = 0
        self._is_open = False

    def write(self, entries: list[Entry], *, seal: bool = False) -> None:
        """Append entries, make them last, and sign the head. What fails leaves the log as it was."""
        if not self._is_open:
            self._open(int(entries[0][0] * 1000) if entries else 0)
        chain = self._chain
        before = chain.seq, chain.last, chain.first, self._size, self._number, self._since_checkpoint
        try:
            self._append(entries, seal=seal)
            write_atomic(self._folder / HEAD, chain.head())
        except OSError:
            chain.seq, chain.last, chain.first, self._size, self._number, self._since_checkpoint = before
            with suppress(OSError):
                for segment in segments_of(self._folder):
                    if int(segment.stem) > self._number:
                        segment.unlink()
                os.truncate(self._path(), self._size)
            raise
        with suppress(OSError):  # what was written stays written; they go with the next entries
            for old in segments_of(self._folder)[:-AUDIT_SEGMENTS]:  # the head is signed without them now
                old.unlink()

    def _append(self, entries: list[Entry], *, seal: bool) -> None:
        data = bytearray()
        for wall, kind, fields in entries:
            data += self._chain.line(int(wall * 1000), kind, **fields)
            self._since_checkpoint += 1
        if entries and (seal or self._since_checkpoint >= CHECKPOINT_LINES):
            data += self._chain.checkpoint(int(entries[-1][0] * 1000))
            self._since_checkpoint = 0
        self._put(bytes(data))
        if self._size >= AUDIT_SEGMENT:
            self._turn(int(entries[-1][0] * 1000))

    def _put(self, data: bytes) -> None:
        if not data:
            return
        fd = os.open(self._path(), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            written = 0
            while written < len(data):
                written += os.write(fd, data[written:])
            os.fdatasync(fd)
        finally:
            os.close(fd)
        self._size += len(data)

    def _turn(self, time_ms: int) -> None:
        """Seal the segment, and begin the next; the oldest is to be removed when there are too many."""
        self._put(self._chain.checkpoint(time_ms))
        self._since_checkpoint = 0
        kept = segments_of(self._folder)[-AUDIT_SEGMENTS + 1 :]
        self._chain.first = first_seq(kept[0])
        self._number, self._size = self._number + 1, 0
        self._put(self._chain.line(time_ms, Kind.SEGMENT, node=str(self._chain.identity.id)))

    def _open(self, time_ms: int) -> None:
        """Find the end of the log, cut half a line that a crash left, and note what is missing."""
        make_private(self._folder)
        chain, segments = self._chain, segments_of(self._folder)
        said = parse_line(read_head(self._folder) or b"")
        if segments:
            self._number = int(segments[-1].stem)
            self._size, line = _end_of(segments[-1])
            fields = parse_line(line)
            chain.seq, chain.last = (
                (int(str(fields["seq"])), hash_of(line)) if fields is not None else (0, hash_of(line))
            )
            chain.first = first_seq(segments[0])
        else:
            self._number = 1
        signed = int(str(said["seq"])) if said is not None else 0
        if self._size == 0:
            chain.first = chain.seq + 1
            self._put(chain.line(time_ms, Kind.SEGMENT, node=str(chain.identity.id)))
        if signed > chain.seq or (segments and said is None):
            log.warning("the audit log ends at line %d; the head signs line %d: it was cut", chain.seq, signed)
            self._put(chain.line(time_ms, Kind.DAMAGED, signed=signed))
        self._is_open = True

    def _path(self) -> Path:
        return self._folder / f"{self._number:08}.jsonl"


def segments_of(folder: Path) -> list[Path]:
    """Return the segments of a log, oldest first."""
    return sorted(path for path in folder.glob("*.jsonl") if path.stem.isdecimal())


def read_head(folder: Path) -> bytes | None:
    """Return the signed head; None when there is none."""
    try:
        return (folder / HEAD).read_bytes()[:TAIL]
    except OSError:
        return None


def first_seq(segment: Path) -> int:
    """Return the number of a segment's first line."""
    with segment.open("rb") as file:
        fields = parse_line(file.readline(TAIL).rstrip(b"\n"))
    return int(str(fields["seq"])) if fields is not None else 0


def _end_of(segment: Path) -> tuple[int, bytes]:
    """Return a segment's size and its last line; half a line behind that is cut."""
    size = segment.stat().st_size
    with segment.open("rb") as file:
        file.seek(max(0, size - TAIL))
        tail = file.read()
    whole = tail[: tail.rfind(b"\n") + 1]
    if len(whole) < len(tail):
        size -= len(tail) - len(whole)
        os.truncate(segment, size)
    lines = whole.splitlines()
    return size, lines[-1] if lines else b""
