"""QUIC implementations behind the seam in ``quic/engine.py``, one file each."""

from __future__ import annotations

from meshnode.errors import ConfigError
from meshnode.quic.engine import EngineFactory


def pick_engine(name: str) -> EngineFactory:
    """Return the engine of that name; ``auto`` is the reference, aioquic. Raises ConfigError."""
    if name in ("auto", "aioquic"):
        from meshnode.quic.engines.aioquic import AioquicEngines

        return AioquicEngines()
    raise ConfigError(f"no QUIC engine is called {name!r}", hint="use auto or aioquic")
