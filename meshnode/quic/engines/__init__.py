"""QUIC implementations behind the seam in ``quic/seam.py``, one file each, loaded when they are asked for."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from meshnode.errors import ConfigError
from meshnode.quic.seam import EngineFactory

DEFAULT = "aioquic"
ENGINES = {  # the file here, which ends in FACTORY -> what installs its library
    "aioquic": "meshnode",
    "qh3": "meshnode[fast]",
}


def pick_engine(name: str) -> EngineFactory:
    """Return the engine of that name. Raises ConfigError when there is none, or it cannot be loaded.

    ``auto`` is aioquic, the reference. qh3 (``meshnode[fast]``) is three to four times as fast and has to be asked
    for: its core grants no credit by the stream, so that file adds packets of its own to the core's, and a
    default should not depend on that. Both keep every promise of the seam and understand one another.
    """
    if name == "auto":
        name = DEFAULT
    if name not in ENGINES:
        raise ConfigError(f"no QUIC engine is called {name!r}", hint=f"use one of {', '.join(('auto', *ENGINES))}")
    try:
        return cast(EngineFactory, import_module(f"meshnode.quic.engines.{name}").FACTORY)
    except ImportError as error:
        raise ConfigError(
            f"the {name} engine cannot be loaded: {error}", hint=f"pip install '{ENGINES[name]}'"
        ) from error
