"""Packages that aioquic imports for what we never ask of it: loaded when they are first used, not before.

aioquic checks the names in certificates of a CA with service_identity, and their chains with pyOpenSSL. A node's
certificate holds its key and has neither. Loading the two costs 2.7 MB and 40 ms at every start (measured), so while
aioquic is imported stand-ins take their places; whoever asks one of them for anything gets the real package's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

PACKAGES = ("service_identity", "OpenSSL")


class Deferred(ModuleType):
    """Stands for a module until something is asked of it. Raises ImportError then, if there is none."""

    def __getattr__(self, name: str) -> object:
        if sys.modules.get(self.__name__) is self or name.startswith("__"):  # the import system itself asks
            raise AttributeError(name)
        return getattr(import_module(self.__name__), name)


@contextmanager
def deferred() -> Iterator[None]:
    """Inside the block ``import`` finds stand-ins for ``PACKAGES``, unless they are loaded already."""
    standing: dict[str, ModuleType] = {}
    if "aioquic.tls" not in sys.modules:
        standing = {name: Deferred(name) for name in PACKAGES if name not in sys.modules}
    if "OpenSSL" in standing:
        standing["OpenSSL"].__dict__["crypto"] = Deferred("OpenSSL.crypto")
    sys.modules.update(standing)
    try:
        yield
    finally:
        for name in standing:
            del sys.modules[name]
