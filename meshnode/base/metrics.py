"""Counters by name. Each name's help text stands beside the code that feeds it, through ``describe``."""

from __future__ import annotations

HELP: dict[str, str] = {}


def describe(name: str, text: str) -> str:
    """Register the help text of a counter in ``HELP``.

    Returns the name, so that a module keeps it as a constant with its text beside it. Names are a public contract: one
    that was released stays.
    """
    HELP[name] = text
    return name


class Metrics:
    """A node's counters by name; one exists from its first count on."""

    def __init__(self) -> None:
        self.counters: dict[str, int] = {}

    def count(self, name: str, n: int = 1) -> None:
        """Add ``n`` to the counter ``name``."""
        self.counters[name] = self.counters.get(name, 0) + n
