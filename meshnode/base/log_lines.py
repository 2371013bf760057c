"""Lines of a log that other nodes can cause: made visible, and limited by kind and by peer, so that none fills a disk.

``LogFormatter`` is the form of the lines of ``meshnode up``. ``LogRate`` is a filter for handlers and loggers; each
node has one. A kind is the line of code that logs, so that no text of another node makes new kinds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import TypeAlias

from meshnode.base.bounded import BoundedDict
from meshnode.base.clock import SystemClock
from meshnode.base.limits import (
    LOG_BURST,
    LOG_KIND_BURST,
    LOG_KIND_RATE,
    LOG_PEER_BURST,
    LOG_PEER_RATE,
    LOG_RATE,
    MAX_LOG_KINDS,
    MAX_LOG_PEERS,
)
from meshnode.base.token_bucket import TokenBucket
from meshnode.foreign_text import MAX_VISIBLE, visible

FORM = "%(asctime)s %(levelname)s %(name)s: %(message)s"
TRACE = "    | "  # before the lines of a traceback: none of them begins as a line of the log does


Logger: TypeAlias = "logging.Logger | logging.LoggerAdapter[logging.Logger]"


class LogFormatter(logging.Formatter):
    """One record is one line; the lines of its traceback are marked as such."""

    def __init__(self) -> None:
        super().__init__(FORM)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of a record, without its traceback."""
        return visible(super().formatMessage(record), MAX_VISIBLE)

    def formatException(self, ei: object) -> str:
        """Return the lines of a traceback."""
        return _traceback(super().formatException(ei))  # type: ignore[arg-type]

    def formatStack(self, stack_info: str) -> str:
        """Return the lines of a stack."""
        return _traceback(stack_info)


def _traceback(text: str) -> str:
    return "\n".join(TRACE + visible(line, MAX_VISIBLE) for line in text.split("\n"))


class LogRate(logging.Filter):
    """Rates of lines that other nodes can cause: of a kind, or where a peer is named, of it and of all peers.

    The next line that passes says how many of its kind or peer did not. A line that carries a rate, its node's, is put
    to that one. The kinds and peers last seen are remembered, ``MAX_LOG_KINDS`` and ``MAX_LOG_PEERS``.
    """

    def __init__(
        self, clock: Callable[[], float] = SystemClock.monotonic, left_out: Callable[[], object] = int
    ) -> None:
        super().__init__()
        self._clock = clock
        self._left_out = left_out
        self._all = TokenBucket(LOG_RATE, LOG_BURST, clock())
        self._kinds: BoundedDict[Hashable, TokenBucket] = BoundedDict(MAX_LOG_KINDS)
        self._peers: BoundedDict[Hashable, TokenBucket] = BoundedDict(MAX_LOG_PEERS)
        self._suppressed: BoundedDict[Hashable, int] = BoundedDict(MAX_LOG_KINDS)

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False for a record that is over its rate."""
        if getattr(record, "rated", False):
            return True  # by the logger's own filter, before the handler's
        rate: LogRate = getattr(record, "rate", self)
        passes = rate.take(record)
        vars(record)["rated"] = passes
        return passes

    def take(self, record: logging.LogRecord) -> bool:
        """Charge a record; False when it is over the rate."""
        now = self._clock()
        key: Hashable = getattr(record, "peer", None)
        if key is None:
            key = (record.pathname, record.lineno)
            passes = _bucket(self._kinds, key, LOG_KIND_RATE, LOG_KIND_BURST, now).take(1, now)
        else:
            own = _bucket(self._peers, key, LOG_PEER_RATE, LOG_PEER_BURST, now)
            passes = own.take(1, now) and self._all.take(1, now)
        if not passes:
            self._suppressed[key] = self._suppressed.get(key, 0) + 1
            self._left_out()
        elif suppressed := self._suppressed.pop(key, 0):
            record.msg, record.args = f"{record.getMessage()} ({suppressed} more like this were not logged)", ()
        return passes

    def of_node(self, log: logging.Logger) -> Logger:
        """Return a logger whose lines have this rate, that of one node; ``log`` is one of ``rated_logger``."""
        return logging.LoggerAdapter(log, {"rate": self})


def _bucket(
    buckets: BoundedDict[Hashable, TokenBucket], key: Hashable, rate: float, burst: float, now: float
) -> TokenBucket:
    bucket = buckets.get(key)
    if bucket is None:
        bucket = buckets[key] = TokenBucket(rate, burst, now)
    return bucket


def rated_logger(name: str) -> logging.Logger:
    """Return a logger whose lines other nodes can cause: each has a rate, in programs with the SDK too.

    That is its node's where it says which (``LogRate.of_node``), else one of all nodes of the process.
    """
    log = logging.getLogger(name)
    if not any(isinstance(found, LogRate) for found in log.filters):
        log.addFilter(LogRate())
    return log
