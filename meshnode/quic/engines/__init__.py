"""QUIC implementations behind the seam in ``quic/engine.py``, one file each."""

from __future__ import annotations

from meshnode.errors import ConfigError
from meshnode.quic.engine import EngineFactory

ENGINES = ("auto", "aioquic", "qh3")


def pick_engine(name: str) -> EngineFactory:
    """Return the engine of that name. Raises ConfigError when there is none, or it cannot be loaded.

    ``auto`` is qh3 where the pinned version of it is installed (``meshnode[fast]``) and passes its start-up
    check, and aioquic, the reference, everywhere else. Both keep every promise of the seam, back-pressure by
    the stream among them, and nodes with different engines understand one another.
    """
    if name not in ENGINES:
        raise ConfigError(f"no QUIC engine is called {name!r}", hint=f"use one of {', '.join(ENGINES)}")
    if name != "aioquic":
        try:
            from meshnode.quic.engines.qh3 import Qh3Engines

            return Qh3Engines()
        except ImportError as error:
            if name == "qh3":
                raise ConfigError(
                    f"the qh3 engine cannot be loaded: {error}", hint="pip install 'meshnode[fast]'"
                ) from error
    from meshnode.quic.engines.aioquic import AioquicEngines

    return AioquicEngines()
