"""The QUIC engine of each node that a test starts: one for all, or by turns both (``./dev test --engine NAME``).

``mixed`` is what ``auto`` is in the tests unless they are told otherwise: the nodes of the test's own process take
turns, and which engine begins depends on the test's name, so that one run of the suite covers both and what they say
to one another. A process gets its engine by the environment, drawn from the test's name: always the same, but not by
turns, for most processes are commands and not nodes.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import zlib
from typing import Any

import pytest

from meshnode.errors import ConfigError
from meshnode.quic.engines import ENGINES, VARIABLE, pick_engine

MIXED = "mixed"
CHOICES = (*ENGINES, MIXED)


def _is_installed(name: str) -> bool:
    try:
        pick_engine(name)
    except ConfigError:
        return False
    return True


INSTALLED = tuple(name for name in ENGINES if _is_installed(name))
every_engine = pytest.mark.parametrize("engine", INSTALLED)


class Turns:
    """The engine of the next node. ``begin`` is called before every test."""

    def __init__(self, choice: str) -> None:
        self._choices = (choice,) if choice != MIXED else INSTALLED
        self.begin("")

    def begin(self, test: str) -> None:
        """Start the turns of a test."""
        self._rng = random.Random(zlib.crc32(test.encode()))
        self.draw()

    def draw(self) -> None:
        """Draw the engine of the next process."""
        os.environ[VARIABLE] = self._rng.choice(self._choices)

    def next(self) -> None:
        """Let the next node have the other engine, unless the test chooses for itself."""
        if (now := os.environ.get(VARIABLE)) in self._choices:
            os.environ[VARIABLE] = self._choices[(self._choices.index(now) + 1) % len(self._choices)]


def take_turns(choice: str) -> Turns:
    """Have every ``pick_engine("auto")`` and every Python process that is started take the next turn."""
    turns = Turns(choice)
    found = pick_engine

    def pick(name: str, *more: Any) -> Any:
        engines = found(name, *more)
        if name == "auto":
            turns.next()
        return engines

    for module in list(sys.modules.values()):
        if getattr(module, "pick_engine", None) is found:
            module.pick_engine = pick  # type: ignore[attr-defined]
    begin = subprocess.Popen.__init__

    def start(self: Any, *args: Any, **more: Any) -> None:
        begin(self, *args, **more)
        if any("python" in str(word) or "meshnode" in str(word) for word in _words(args, more)):
            turns.draw()

    subprocess.Popen.__init__ = start  # type: ignore[method-assign]
    return turns


def _words(args: tuple[Any, ...], more: dict[str, Any]) -> list[object]:
    line = args[0] if args else more.get("args", ())
    return [line] if isinstance(line, str | bytes) else [*line]
