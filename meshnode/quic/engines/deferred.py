"""Deferred import of packages that aioquic needs only for certificates of a CA.

aioquic checks the names in certificates of a CA with service_identity, and their chains with pyOpenSSL. A node's
certificate holds its key and has neither. Loading the two costs 2.7 MB and 40 ms at every start (measured), so while
aioquic is imported stand-ins take their places; an attribute of a stand-in is the real package's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

PACKAGES = ("service_identity", "OpenSSL")


class Deferred(ModuleType):
    """A stand-in for a module, which is imported when an attribute is first read (ImportError if there is none)."""

    def __getattr__(self, name: str) -> object:
        if sys.modules.get(self.__name__) is self or name.startswith("__"):  # the import system itself asks
            raise AttributeError(name)
        return getattr(import_module(self.__name__), name)


@contextmanager
def deferred() -> Iterator[None]:
    """Let ``import`` find stand-ins for ``PACKAGES`` inside the block.

    A package that is loaded already is left alone, and so are all when ``aioquic.tls`` is loaded. The stand-ins leave
    ``sys.modules`` at the end of the block; what was imported from them inside goes on to work.
    """
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
