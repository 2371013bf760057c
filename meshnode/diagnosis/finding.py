"""Findings of the doctor: one sentence, its level and, for a problem, what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from meshnode.base.path_reason import PathReason, in_words
from meshnode.base.value import frozen

Snapshot = Mapping[str, Any]  # what crosses the control socket; every key may be missing (another version)


class Level(Enum):
    """Level of a finding. A note is worth knowing and needs nothing done."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@frozen
class Finding:
    """``topic`` is one of the words in docs/reference/cli.md; a problem always has a ``hint``."""

    topic: str
    level: Level
    text: str
    hint: str = ""

    def to_json(self) -> dict[str, str]:
        """Return it as plain JSON: ``topic``, ``level``, ``text``, ``hint``.

        ``level`` is a value of ``Level``; ``hint`` is "" where nothing needs to be done.
        """
        return {"topic": self.topic, "level": self.level.value, "text": self.text, "hint": self.hint}


def ok(topic: str, text: str) -> Finding:
    """Return a finding that something works."""
    return Finding(topic, Level.OK, text)


def note(topic: str, text: str, hint: str = "") -> Finding:
    """Return a finding that is worth knowing and needs nothing done.

    A ``hint`` may say what would help.
    """
    return Finding(topic, Level.NOTE, text, hint)


def problem(topic: str, text: str, hint: str) -> Finding:
    """Return a finding that something does not work; ``hint`` says what to do."""
    return Finding(topic, Level.PROBLEM, text, hint)


def ms(value: float) -> str:
    """Return milliseconds for people: one decimal place below 100 ms, none above."""
    return f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def seconds(value: float) -> str:
    """Return a span of time for people.

    In ms below 1 s, in s below 2 min, in min below 2 h, in h below 2 days, else in days.
    """
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 120:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    if value < 7_200:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.0f} h" if value < 172_800 else f"{value / 86_400:.0f} days"


def short(text: object) -> str:
    """Return an endpoint or an id for people.

    Ids of 52 characters are cut to 8, relayed paths and WebSockets are said in words, the number of an extra socket is
    left out; anything else is returned unchanged.
    """
    where = str(text)
    if where.startswith("relay!"):
        return f"relay {where[6:14]}"
    if where.startswith("wss!"):
        _, ours, host = where.rpartition("@")
        return f"WebSocket to {host}" if ours else "its WebSocket"
    host, mark, rest = where.partition("%side")
    if mark:  # by which of our extra sockets: nothing that a person wants to know
        return f"{host}:{rest.rpartition(':')[2]}"
    return where[:8] if len(where) == 52 and where.isalnum() else where


def change_in_words(change: Snapshot) -> str:
    """Return why a path changed, for how long nothing was heard, and how often, from an entry of ``history``."""
    words, silent = in_words(change.get("why")), change.get("silent_s")
    times = int(change.get("times") or 1)
    if change.get("silent"):
        return f"{words}, and is silent still"
    if times > 1:
        return f"{words}, {times} times" + (f" for up to {seconds(silent)}" if silent is not None else "")
    if silent is None:
        return words
    lasted = change.get("why") in (PathReason.SILENT, PathReason.SUSPENDED)
    return f"{words} for {seconds(silent)}" if lasted else f"{words}, {seconds(silent)} without an answer"


def opened_by_us(peer: Snapshot) -> bool:
    """Return True for a path over a WebSocket that this node opened.

    One that the peer opened shows that the peer's network blocks UDP, and nothing of this node's.
    """
    return bool(peer.get("tunnel")) and "@" in str(peer.get("endpoint"))


def plural(count: int, one: str, many: str = "") -> str:
    """``1 peer``, ``2 peers``."""
    return f"{count} {one if count == 1 else many or one + 's'}"
