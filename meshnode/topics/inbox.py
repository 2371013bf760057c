"""Bounded receive queue of a topic: each message at most once, every loss counted. Sans I/O.

Messages of one origin are numbered without gaps, so a missing number is a message that is late or lost. It is waited
for, without holding up the others, and counted as lost when it does not come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import TOPIC_MAX_HOLES, TOPIC_MAX_ORIGINS, TOPIC_QUEUE
from meshnode.identity.node_id import NodeId

LATE_S = 20.0  # a missing message that did not come within this is lost; queues of busy links are some seconds long
EARLY = 64  # messages that may come after a later one, although that was the first of their origin


@dataclass(frozen=True, slots=True)
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


@dataclass(slots=True)
class _Origin:
    epoch: int
    next: int
    early: dict[int, None]
    holes: BoundedDict[int, float] = field(default_factory=lambda: BoundedDict(TOPIC_MAX_HOLES))


def _nothing() -> None:
    return None


class Inbox:
    """``lost`` counts messages that never came, and those dropped unread; ``on_ready`` wakes the reader, ``on_linked``
    hears of the first link to another member."""

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
        """Return the oldest unread message."""
        return self._queue.popleft() if self._queue else None

    def on_message(self, sender: NodeId, epoch: int, seq: int, data: bytes, now: float) -> bool:
        """Take a verified message; False when it was here before, or its sender has joined again since."""
        if not self._note(sender, epoch, seq, now):
            return False
        self.received += 1
        self._queue.append(TopicMessage(sender, data, seq))
        if len(self._queue) > self._limit:
            self._queue.popleft()
            self.lost += 1
        self.on_ready()
        return True

    def close(self) -> None:
        """Take no more messages; those that are here may still be read."""
        self.closed = True
        self.on_ready()

    def expire(self, now: float) -> float | None:
        """Count what is overdue as lost; returns when to look again."""
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

    def _note(self, sender: NodeId, epoch: int, seq: int, now: float) -> bool:
        origin = self._origins.get(sender)
        if origin is None or epoch > origin.epoch:
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
