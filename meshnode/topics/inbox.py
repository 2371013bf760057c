"""Bounded receive queue of a topic: each message at most once, every loss counted. Sans I/O.

Messages of one origin are numbered without gaps, so a missing number is a message that is late or lost. The others are
not held up meanwhile; it counts as lost when it does not come within ``LATE_S``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import field

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import TOPIC_MAX_HOLES, TOPIC_MAX_ORIGINS, TOPIC_QUEUE
from meshnode.base.value import state, value
from meshnode.identity.node_id import NodeId

LATE_S = 20.0  # a missing message that does not come within this is lost; queues of busy links are some seconds long
EARLY = 64  # messages that may come after a later one, although that was the first of their origin


@value
class TopicMessage:
    """One message of a topic.

    Attributes:
        sender: The node that published it, which its signature proves.
        data: What was published, at most 3,072 bytes.
        seq: Counts the sender's messages in this topic from 1; begins at 1 again after the sender has left and joined.
    """

    sender: NodeId
    data: bytes
    seq: int


@state
class _Origin:
    epoch: int
    next: int
    early: dict[int, None]
    holes: BoundedDict[int, float] = field(default_factory=lambda: BoundedDict(TOPIC_MAX_HOLES))


def _nothing() -> None:
    return None


class Inbox:
    """Receive queue of one topic; when it is full, the oldest unread message is dropped.

    ``lost`` counts messages that never came, and those dropped unread. ``on_ready`` is called when there is something
    to read or the queue was closed, ``on_linked`` after each new link to another member.
    """

    def __init__(self, limit: int = TOPIC_QUEUE) -> None:
        self.lost = 0
        self.received = 0
        self.closed = False
        self.on_ready: Callable[[], None] = _nothing
        self.on_linked: Callable[[], None] = _nothing
        self._limit = limit
        self._queue: deque[TopicMessage] = deque()
        self._origins: BoundedDict[NodeId, _Origin] = BoundedDict(TOPIC_MAX_ORIGINS)

    def __len__(self) -> int:
        return len(self._queue)

    def pop(self) -> TopicMessage | None:
        """Take out the oldest unread message; None when there is none, also before more come."""
        return self._queue.popleft() if self._queue else None

    def on_message(
        self, sender: NodeId, epoch: int, seq: int, data: bytes, now: float, latest: float = math.inf
    ) -> bool:
        """Take a verified message; False when it was here before, or its sender has joined again since.

        Args:
            sender: The node that signed it.
            epoch: When the sender joined the topic, in Unix milliseconds; of two, the later one counts.
            seq: Counts the sender's messages of this epoch from 1.
            data: What the application gets.
            now: Monotonic seconds.
            latest: The latest epoch that is believed: one beyond it is of a clock that was ahead, and outranks none.
        """
        if not self._note(sender, epoch, seq, now, latest):
            return False
        self.received += 1
        self._queue.append(TopicMessage(sender, data, seq))
        if len(self._queue) > self._limit:
            self._queue.popleft()
            self.lost += 1
        self.on_ready()
        return True

    def close(self) -> None:
        """Mark the queue as closed and wake the reader: no more messages come.

        Those that are here may be read.
        """
        self.closed = True
        self.on_ready()

    def expire(self, now: float) -> float | None:
        """Count overdue messages as lost; returns when the next one is due, None when none is missing.

        ``now`` and the result are monotonic seconds.
        """
        again: float | None = None
        for origin in self._origins.values():
            holes = origin.holes
            while holes:
                seq, due = next(iter(holes.items()))
                if due > now:
                    again = due if again is None else min(again, due)
                    break
                del holes[seq]
                self.lost += 1
        return again

    def _note(self, sender: NodeId, epoch: int, seq: int, now: float, latest: float) -> bool:
        origin = self._origins.get(sender)
        if origin is None or epoch > origin.epoch or (epoch < origin.epoch and origin.epoch > latest):
            if origin is not None:
                self.lost += len(origin.holes)
            fresh = _Origin(epoch, seq + 1, dict.fromkeys(range(max(1, seq - EARLY), seq)))
            pushed_out = self._origins.put(sender, fresh)
            if pushed_out is not None:
                self.lost += len(pushed_out[1].holes)
            return True
        if epoch < origin.epoch:
            return False
        if seq < origin.next:
            return origin.holes.pop(seq, None) is not None or origin.early.pop(seq, self) is None
        missing = range(origin.next, seq)
        for number in missing[-TOPIC_MAX_HOLES:]:
            if origin.holes.put(number, now + LATE_S) is not None:
                self.lost += 1
        self.lost += max(0, len(missing) - TOPIC_MAX_HOLES)
        origin.next = seq + 1
        self._origins.move_to_end(sender)
        return True
