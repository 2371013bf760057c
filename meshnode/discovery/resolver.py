"""Records by key from all sources: a verified, bounded cache and the questions that wait for it. Sans-IO.

A source is only a hint: whatever it hands in counts when its signature, its time and its seq do, and the
newest valid seq wins, whatever its source. The sources themselves (live connections, and those of
``source.py``) are elsewhere; all of them end in ``offer``.
"""

from __future__ import annotations

from collections.abc import Callable

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import MAX_CACHED_RECORDS, MAX_PENDING_RESOLVES, RESOLVE_TIMEOUT_S
from meshnode.base.metrics import Metrics
from meshnode.base.value import frozen, state
from meshnode.errors import NotFound, RecordError
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord, is_ahead, newer, open_record


@frozen
class Resolved:
    """The outcome of ``node.resolve``.

    Attributes:
        record: The newest record of the node, verified.
        source: The source that brought it first: ``dht``, ``watch`` (an update that a DHT node passed on), ``mdns``,
            ``gossip``, ``connection``, or ``self``.
        ms: How long this search took, in milliseconds; 0 when the record was known.
    """

    record: EndpointRecord
    source: str
    ms: float


@state
class _Cached:
    record: EndpointRecord
    source: str


@state
class _Question:
    asked: float
    deadline: float
    answer: Callable[[Resolved | NotFound], None]


class Resolver:
    """The newest valid record of each id, up to ``MAX_CACHED_RECORDS``: the least recently used go first."""

    def __init__(self, metrics: Metrics) -> None:
        self.is_barred: Callable[[NodeId], bool] = lambda peer: False  # keys whose records count no longer
        self._metrics = metrics
        self._cache: BoundedDict[NodeId, _Cached] = BoundedDict(MAX_CACHED_RECORDS)
        self._questions: dict[NodeId, list[_Question]] = {}
        self._pending = 0

    def offer(
        self, encoded: bytes, source: str, now: float, wall: float, *, expected: NodeId | None = None
    ) -> EndpointRecord | None:
        """Take a record from a source; return it when it is valid and newer than the one that was held.

        Invalid ones are dropped and counted as ``record_<reason>``, old ones as ``record_old``.
        """
        try:
            record = open_record(encoded, wall, expected=expected)
        except RecordError as error:
            self._metrics.count(f"record_{error.reason.name.lower()}")
            return None
        if self.is_barred(record.id):
            self._metrics.count("record_revoked")
            return None
        cached = self._cache.get(record.id)
        if cached is not None and not is_ahead(cached.record, wall) and not newer(record, cached.record):
            if cached.record.encoded != record.encoded:
                self._metrics.count("record_old")
            if cached.record.expires_ms >= wall * 1000:  # an expired one outranks older ones, but is no answer
                self._answer(cached.record, source, now)
            return None
        self._cache.put(record.id, _Cached(record, source))
        self._answer(record, source, now)
        return record

    def _answer(self, record: EndpointRecord, source: str, now: float) -> None:
        asked = self._questions.pop(record.id, ())
        self._tell([(question, Resolved(record, source, (now - question.asked) * 1000)) for question in asked])

    def _tell(self, answers: list[tuple[_Question, Resolved | NotFound]]) -> None:
        """Answer questions; a caller that raises keeps no other from its answer."""
        failed: Exception | None = None
        for question, answer in answers:
            self._pending -= 1
            try:
                question.answer(answer)
            except Exception as error:
                failed = error
        if failed is not None:
            raise failed

    def get(self, peer: NodeId, wall: float) -> EndpointRecord | None:
        """Return the cached record when it has not expired, and is not ahead of the clock.

        A record that is used stays longest; ``wall`` is Unix seconds.
        """
        cached = self._cache.get(peer)
        if cached is None:
            return None
        if cached.record.expires_ms < wall * 1000 or is_ahead(cached.record, wall) or self.is_barred(peer):
            del self._cache[peer]
            return None
        self._cache.move_to_end(peer)  # a flood of records pushes out those that are not asked for
        return cached.record

    def source(self, peer: NodeId) -> str:
        """Return the source that brought the cached record ('' when there is none).

        It is the first one that brought this very record; others may have brought it since.
        """
        cached = self._cache.get(peer)
        return cached.source if cached is not None else ""

    def ask(self, peer: NodeId, now: float, answer: Callable[[Resolved | NotFound], None]) -> bool:
        """Wait for the next valid record of ``peer``.

        ``answer`` is called once: with the record, or with NotFound after ``RESOLVE_TIMEOUT_S``. Returns False,
        with NotFound answered at once, when ``MAX_PENDING_RESOLVES`` callers wait already.
        """
        if self._pending >= MAX_PENDING_RESOLVES:
            answer(NotFound("too many lookups at once", hint="try again in a moment"))
            return False
        self._pending += 1
        self._questions.setdefault(peer, []).append(_Question(now, now + RESOLVE_TIMEOUT_S, answer))
        return True

    def asked(self, peer: NodeId) -> bool:
        """Return True while a caller waits for this id's record."""
        return peer in self._questions

    def waiting(self) -> list[NodeId]:
        """Return the ids whose records are waited for."""
        return list(self._questions)

    def give_up(self, peer: NodeId) -> None:
        """Answer all questions about this id with NotFound: every source has answered, and none knows it."""
        self._tell([(question, _not_found(peer)) for question in self._questions.pop(peer, ())])

    def next_deadline(self) -> float | None:
        """Return when the first question times out (monotonic seconds)."""
        if not self._questions:
            return None
        return min((q.deadline for asked in self._questions.values() for q in asked), default=None)

    def tick(self, now: float) -> None:
        """Give up questions that have waited ``RESOLVE_TIMEOUT_S``."""
        answers: list[tuple[_Question, Resolved | NotFound]] = []
        for peer, asked in list(self._questions.items()):
            if any(q.deadline <= now for q in asked):
                late = [q for q in asked if q.deadline <= now]
                rest = [q for q in asked if q.deadline > now]
                if rest:
                    self._questions[peer] = rest
                else:
                    del self._questions[peer]
                answers += [(question, _not_found(peer)) for question in late]
        self._tell(answers)


def _not_found(peer: NodeId) -> NotFound:
    return NotFound(
        f"no source knows where {peer.short} is",
        hint="is it running, in the same mesh, and does it know a seed or share our LAN?",
    )
