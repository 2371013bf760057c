"""Values of the two kinds of entries that topics use: SUBSCRIPTION and TOPIC. Sans I/O."""

from __future__ import annotations

from meshnode.base.limits import TOPIC_MAX_DATA
from meshnode.base.wire import WireError, decode, encode
from meshnode.gossip.entry import Entry, Kind

SCOPE_LENGTH = 16


def scope_in(name: str) -> bytes | None:
    """Return the scope that a SUBSCRIPTION entry is named after; None when the name is none.

    A scope is written as hexadecimal digits, of ``SCOPE_LENGTH`` bytes.
    """
    try:
        scope = bytes.fromhex(name)
    except ValueError:
        return None
    return scope if len(scope) == SCOPE_LENGTH else None


def is_subscription(entry: Entry) -> bool:
    """Return whether a SUBSCRIPTION entry is well-formed.

    Its name is a scope as 32 lower-case hexadecimal digits; its value is empty, or None when it withdraws.
    """
    return len(entry.name) == 32 and all(c in "0123456789abcdef" for c in entry.name) and not entry.value


def message_value(epoch: int, data: bytes) -> bytes:
    """Return the value of a TOPIC entry: the canonical CBOR array ``[epoch, data]``.

    ``epoch`` is when the sender joined, in Unix milliseconds; the entry's seq is the epoch plus the message's number.
    """
    return encode([epoch, data])


def parse_message(entry: Entry, topic: str) -> tuple[int, bytes] | None:
    """Return the epoch and the data of a message; None when the entry is no message of this topic.

    The data has at most ``TOPIC_MAX_DATA`` bytes, and ``entry.seq - epoch`` is at least 1.
    """
    if entry.kind != Kind.TOPIC or entry.name != topic or entry.value is None:
        return None
    try:
        fields = decode(entry.value, TOPIC_MAX_DATA + 32)
    except WireError:
        return None
    if not isinstance(fields, list) or [type(field) for field in fields] != [int, bytes]:
        return None
    epoch, data = fields
    if len(data) > TOPIC_MAX_DATA or not 0 <= epoch < entry.seq:
        return None
    return epoch, data
