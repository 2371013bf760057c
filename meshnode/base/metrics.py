"""Counters by name. Each name's help text stands beside the code that feeds it, through ``describe``."""

from __future__ import annotations

HELP: dict[str, str] = {}


def describe(name: str, text: str) -> str:
    """Register the help text of a counter; returns the name."""
    HELP[name] = text
    return name


class Metrics:
    """A node's counters; a name springs into being when it is first counted."""

    def __init__(self) -> None:
        self.counters: dict[str, int] = {}

    def count(self, name: str, n: int = 1) -> None:
        """Add ``n`` to the counter ``name``."""
        self.counters[name] = self.counters.get(name, 0) + n
