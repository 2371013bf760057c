"""QUIC implementations behind the seam in ``quic/seam.py``, one file each, loaded when they are asked for."""

from __future__ import annotations

import logging
import os
from importlib import import_module
from importlib.util import find_spec
from typing import cast

from meshnode.errors import ConfigError
from meshnode.quic.engines.key_exchange import ON
from meshnode.quic.seam import EngineFactory

log = logging.getLogger("meshnode.quic")

VARIABLE = "MESHNODE_ENGINE"
FAST, REFERENCE = "qh3", "aioquic"
ENGINES = (FAST, REFERENCE)  # the files here that end in FACTORY; each needs the library of its name

refused: dict[str, str] = {}  # engines that are installed and cannot be used here, with the reason


def pick_engine(name: str, post_quantum: str = ON) -> EngineFactory:
    """Return the engine of that name. Raises ConfigError when there is none, or it cannot be loaded.

    ``auto`` is what ``MESHNODE_ENGINE`` says, else qh3 where it is installed, else aioquic, the reference. An
    installed qh3 that the engine does not fit is passed over, with a warning, and is in ``refused``. Both keep every
    promise of the seam and understand one another; only the one that is picked is loaded. ``post_quantum`` is as in
    ``Config``.
    """
    factory = _pick(name)
    made: EngineFactory = factory if post_quantum == ON else type(factory)(post_quantum)  # type: ignore[call-arg]
    return made


def _pick(name: str) -> EngineFactory:
    if name == "auto":
        name = os.environ.get(VARIABLE) or "auto"
    if name == "auto":
        return _fastest()
    if name not in ENGINES:
        raise ConfigError(f"no QUIC engine is called {name!r}", hint=f"use one of {', '.join(('auto', *ENGINES))}")
    try:
        return _load(name)
    except ImportError as error:
        raise ConfigError(f"the {name} engine cannot be loaded: {error}", hint=f"pip install {name}") from error


def _fastest() -> EngineFactory:
    if FAST not in refused and find_spec(FAST) is not None:
        try:
            return _load(FAST)
        except ImportError as error:
            refused[FAST] = f"the engine {FAST} cannot be used, so {REFERENCE} is, which is slower: {error}"
            log.warning("%s", refused[FAST])
    return _load(REFERENCE)


def _load(name: str) -> EngineFactory:
    return cast(EngineFactory, import_module(f"meshnode.quic.engines.{name}").FACTORY)
