"""QUIC implementations behind the seam in ``quic/engine.py``, one file each."""

from __future__ import annotations

from meshnode.errors import ConfigError
from meshnode.quic.seam import EngineFactory

ENGINES = ("auto", "aioquic", "qh3")


def pick_engine(name: str) -> EngineFactory:
    """Return the engine of that name. Raises ConfigError when there is none, or it cannot be loaded.

    ``auto`` is aioquic, the reference. qh3 (``meshnode[fast]``) is three to four times as fast and has to be asked
    for: its core grants no credit by the stream, so that file adds packets of its own to the core's, and a
    default should not depend on that. Both keep every promise of the seam and understand one another.
    """
    if name not in ENGINES:
        raise ConfigError(f"no QUIC engine is called {name!r}", hint=f"use one of {', '.join(ENGINES)}")
    if name == "qh3":
        try:
            from meshnode.quic.engines.qh3 import Qh3Engines

            return Qh3Engines()
        except ImportError as error:
            raise ConfigError(
                f"the qh3 engine cannot be loaded: {error}", hint="pip install 'meshnode[fast]'"
            ) from error
    from meshnode.quic.engines.aioquic import AioquicEngines

    return AioquicEngines()
