"""Publishing in one topic: numbers, the rate limit, and waiting under back-pressure. Sans I/O."""

from __future__ import annotations

from meshnode.base.limits import (
    GOSSIP_MAX_FLEETING_TTL_S,
    TOPIC_MAX_DATA,
    TOPIC_PUBLISH_BURST,
    TOPIC_PUBLISH_BYTES,
    TOPIC_PUBLISH_RATE,
)
from meshnode.base.token_bucket import RateLimit, TokenBucket
from meshnode.gossip.entry import Entry, Kind, latest_ms, sign_entry
from meshnode.identity.keys import Identity
from meshnode.topics.back_pressure import BackPressure
from meshnode.topics.entries import message_value

LOOK_AGAIN_S = 0.02  # a publisher that is held back looks again after this
MAX_HELD_S = 1.0  # and waits for one message at most this long


class Publisher:
    """Signs the messages of this node in one topic; says when the next one may go."""

    def __init__(self, identity: Identity, name: str, pressure: BackPressure, now: float, wall: float) -> None:
        self._identity = identity
        self._name = name
        self._pressure = pressure
        self._epoch = round(wall * 1000)
        self._published = float("-inf")
        self.count = 0  # messages so far: the number of the last one
        self._rate = RateLimit(
            TokenBucket(TOPIC_PUBLISH_RATE, TOPIC_PUBLISH_BURST, now),
            TokenBucket(TOPIC_PUBLISH_BYTES, TOPIC_PUBLISH_BYTES, now),
        )

    def wait(self, size: int, now: float) -> float:
        """Return the seconds until a message of ``size`` bytes may be published; 0.0 when it may be now.

        Under back-pressure that is ``LOOK_AGAIN_S``, until a second has passed since the last message. Raises
        ValueError when ``size`` is over ``TOPIC_MAX_DATA``.
        """
        _check_size(size)
        if now < self._published + MAX_HELD_S and self._pressure.pressing(now):
            self._rate.messages.drain(1)  # what was held back is no burst that may follow
            return LOOK_AGAIN_S
        return self._rate.wait(size, now)

    def sign(self, data: bytes, now: float, wall: float) -> Entry:
        """Number and sign a message. Raises ValueError when it has over ``TOPIC_MAX_DATA`` bytes.

        It is charged to the rate limit, which does not refuse it: that is for the caller to ask ``wait`` about.
        """
        _check_size(len(data))
        self._rate.take(len(data), now)
        self._published = now
        if self._epoch + self.count > latest_ms(wall):
            self._epoch, self.count = int(wall * 1000), 0  # the clock was ahead when this began: others refuse it
        self.count += 1
        return sign_entry(
            self._identity,
            kind=Kind.TOPIC,
            name=self._name,
            seq=self._epoch + self.count,
            issued_ms=int(wall * 1000),
            ttl=GOSSIP_MAX_FLEETING_TTL_S,
            value=message_value(self._epoch, data),
        )


def _check_size(size: int) -> None:
    if size > TOPIC_MAX_DATA:
        raise ValueError(f"a message has at most {TOPIC_MAX_DATA} bytes, not {size}")
