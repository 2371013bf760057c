"""Why a peer's path changed: the one list that selection, effects, events, ``peers --history`` and the doctor read."""

from __future__ import annotations

from enum import StrEnum


class PathReason(StrEnum):
    """A reason. Its value stands in JSON output and events; ``words`` is the same for people.

    Which of them makes a node switch, and when, is decided in ``paths/selection.py``.
    """

    words: str

    def __new__(cls, value: str, words: str) -> PathReason:
        reason = str.__new__(cls, value)
        reason._value_ = value
        reason.words = words
        return reason

    DIAL = "dial", "dialled"
    ACCEPTED = "accepted", "connected"
    PEER_MOVED = "peer moved", "the peer moved"
    MOVED = "moved", "this node moved"
    ANSWERED = "answered", "it answered first after a silence"
    VALIDATED = "validated", "it was proven to be the peer's"
    BETTER_KIND = "better kind", "a better kind of path was found"
    NEARER = "nearer", "it stays on this node's own network"
    FASTER = "faster", "it is faster"
    FEWER_LOSSES = "fewer losses", "it loses less"
    UNCONFIRMED = "unconfirmed", "the address that the peer moved to never answered"
    TOO_SMALL = "too small", "the one before lost all packets but small ones"
    BLACK_HOLE = "black hole", "large packets no longer passed"
    SILENT = "silent", "the path fell silent"
    SUSPENDED = "suspended", "nothing answered any more"
    RESUMED = "resumed", "something answered again"


_BY_VALUE = {reason.value: reason for reason in PathReason}


def in_words(value: object) -> str:
    """Return the words for a reason's value as JSON output has it.

    A value that is no reason of this version (the daemon may run another one) is returned unchanged, as text.
    """
    reason = _BY_VALUE.get(str(value))
    return reason.words if reason is not None else str(value)
