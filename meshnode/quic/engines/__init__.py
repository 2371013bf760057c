"""QUIC implementations behind the seam in ``quic/engine.py``, one file each."""

from __future__ import annotations

from meshnode.errors import ConfigError
from meshnode.quic.engine import EngineFactory

ENGINES = ("auto", "aioquic", "qh3")


def pick_engine(name: str) -> EngineFactory:
    """Return the engine of that name. Raises ConfigError when there is none, or it is not installed.

    ``auto`` is aioquic, the reference, even where qh3 is installed: qh3 holds a sender back by the
    connection and not by the stream, so one reader that stops would stop its neighbours. Who has one
    stream a peer, or only readers that keep up, gains by asking for ``qh3``.
    """
    if name in ("auto", "aioquic"):
        from meshnode.quic.engines.aioquic import AioquicEngines

        return AioquicEngines()
    if name == "qh3":
        try:
            from meshnode.quic.engines.qh3 import Qh3Engines
        except ImportError as error:
            raise ConfigError(
                f"the qh3 engine cannot be loaded: {error}", hint="pip install 'meshnode[fast]'"
            ) from error
        return Qh3Engines()
    raise ConfigError(f"no QUIC engine is called {name!r}", hint=f"use one of {', '.join(ENGINES)}")
