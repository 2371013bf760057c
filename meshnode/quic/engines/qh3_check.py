"""A trial of qh3's core: does it do what packets of our own for credit (``credit.py``) stand on?

They have the numbers after the core's own, and grant what the core, whose stream windows are wide open, does not. A
core of another version might count or grant otherwise, and a number used twice would give a key away. So the versions
that the tests have run with are named here, and any other is tried once a start, between two ends in memory.
"""

from __future__ import annotations

from collections.abc import Callable

import qh3

from meshnode.identity.keys import Identity
from meshnode.quic.engines.common import STREAM_WINDOW
from meshnode.quic.engines.deferred import version_of
from meshnode.quic.seam import Engine, EngineEvent, EngineFactory, HandshakeDone, StreamData, Terminated

TESTED = ("2.1.0",)
ROUNDS = 4_000  # 2 MB come through in 300 of them
STEP_S = 0.001
MORE = 100_000


def check_core(engines: EngineFactory) -> None:
    """Raise ImportError when the installed version is not a tested one, and fails the trial."""
    found = version_of(qh3)
    if found in TESTED:
        return
    try:
        _Trial(engines).run()
    except (AssertionError, RuntimeError) as error:
        tested = " or ".join(TESTED)
        raise ImportError(f"qh3 {found} is not the tested {tested}, and {error}") from error


class _Trial:
    """Two ends and a network without delay or loss."""

    def __init__(self, engines: EngineFactory) -> None:
        one, other = Identity(bytes(31) + b"\1"), Identity(bytes(31) + b"\2")
        self.now = 0.0
        self.dialler = engines.dial(one, other.id, lambda odcid: bytes(96), 30.0, 0.0)
        self.listener = engines.accept(other, self.dialler.odcid, 30.0, 0.0)
        self.got: dict[Engine, int] = {self.dialler: 0, self.listener: 0}
        self.done = 0

    def run(self) -> None:
        """Raise AssertionError with what the core does otherwise."""
        self._pump(lambda: self.done == 2, "it completes no handshake")
        stream = self.dialler.open_stream()
        self.dialler.send(stream, bytes(STREAM_WINDOW + MORE))
        self._pump(lambda: self.got[self.listener] >= STREAM_WINDOW, "it stops before the window is used up")
        for _ in range(100):
            self._step()
        assert self.got[self.listener] == STREAM_WINDOW, "it grants more than the application has taken"
        self.listener.consumed(stream, STREAM_WINDOW // 2)
        self._pump(lambda: self.got[self.listener] == STREAM_WINDOW + MORE, "a grant that was added does not count")
        self.listener.send(stream, bytes(MORE))
        self._pump(lambda: self.got[self.dialler] == MORE, "nothing comes after a packet that was added")

    def _pump(self, holds: Callable[[], bool], otherwise: str) -> None:
        for _ in range(ROUNDS):
            if holds():
                return
            self._step()
        raise AssertionError(otherwise)

    def _step(self) -> None:
        for source, target in ((self.dialler, self.listener), (self.listener, self.dialler)):
            source.on_timer(self.now)
            target.receive(source.transmit(self.now), self.now)
            for engine in (source, target):
                for event in engine.events():
                    self._take(engine, event)
        self.now += STEP_S

    def _take(self, engine: Engine, event: EngineEvent) -> None:
        assert not isinstance(event, Terminated), f"a connection ends: {getattr(event, 'reason', '')}"
        if isinstance(event, StreamData):
            self.got[engine] += len(event.data)
        elif isinstance(event, HandshakeDone):
            self.done += 1
