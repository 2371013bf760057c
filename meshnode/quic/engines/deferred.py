"""Deferred import of what the engines' libraries load and a node does not need.

aioquic checks the names in certificates of a CA with service_identity, and their chains with pyOpenSSL. A node's
certificate holds its key and has neither. Loading the two costs 2.7 MB and 40 ms at every start (measured), so while
aioquic is imported stand-ins take their places; an attribute of a stand-in is the real package's.

qh3 makes some 30 classes by ``dataclass``, which compiles the methods of each: 10 ms at every start. While it is
imported they are made as this package's are (``base/value.py``).

qh3's package file imports its own asyncio and HTTP/3 sides, which costs 8 ms at every start. So the package is made
without executing that file, which is executed when an attribute is read that its modules have not set: other code that
uses qh3 in the same process finds all of it.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from threading import RLock
from types import ModuleType
from typing import Any, List, Tuple  # noqa: UP035 - as qh3 writes its type

from meshnode.base.value import like_dataclass

PACKAGES = ("service_identity", "OpenSSL")
UNEXECUTED: dict[str, dict[str, object]] = {
    "qh3": {},
    "qh3.h3.events": {"Headers": List[Tuple[bytes, bytes]]},  # noqa: UP006 - a type that qh3's logger names
}


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


class Unexecuted(ModuleType):
    """A module whose file is executed when an attribute is first read that is not there yet."""

    _lock = RLock()

    def __getattr__(self, name: str) -> object:
        with self._lock:
            if type(self) is Unexecuted:
                spec = self.__spec__
                assert spec is not None
                assert spec.loader is not None
                self.__class__ = ModuleType  # type: ignore[assignment]
                spec.loader.exec_module(self)
        return getattr(self, name)


class _Bare(Unexecuted):
    """The same while it is imported: the import system asks for modules of a package, which are no attributes yet."""

    def __getattr__(self, name: str) -> object:
        raise AttributeError(name)


@contextmanager
def light_dataclasses(package: str) -> Iterator[None]:
    """Let classes that modules of ``package`` make by ``dataclass`` inside the block compile nothing."""

    def light(cls: type | None = None, /, **options: bool) -> Any:
        if cls is None:
            return partial(light, **options)
        is_meant = cls.__module__.partition(".")[0] == package and options.keys() <= {"frozen", "slots"}
        return like_dataclass(cls, **options) if is_meant else real(cls, **options)

    real: Any = dataclasses.dataclass
    dataclasses.dataclass = light
    try:
        yield
    finally:
        dataclasses.dataclass = real


@contextmanager
def unexecuted() -> Iterator[None]:
    """Let ``import`` find the modules of ``UNEXECUTED`` not executed inside the block, where qh3 is not loaded yet.

    Raises ImportError when there is no qh3.
    """
    made: list[ModuleType] = []
    if "qh3" not in sys.modules:
        for name, attributes in UNEXECUTED.items():
            spec = find_spec(name)
            if spec is None:
                raise ImportError(f"No module named {name!r}")
            module = module_from_spec(spec)
            module.__class__ = _Bare
            vars(module).update(attributes)
            sys.modules[name] = module
            made.append(module)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)
    try:
        yield
    except BaseException:
        for module in made:
            sys.modules.pop(module.__name__, None)
        raise
    finally:
        for module in made:
            module.__class__ = Unexecuted


def version_of(package: ModuleType) -> str:
    """Return the ``__version__`` of a package, from the text of its file where that is not executed yet."""
    if "__version__" not in vars(package) and package.__file__ is not None:
        written = re.search(r'^__version__ = "([^"]+)"$', Path(package.__file__).read_text(), re.MULTILINE)
        if written is not None:
            return written[1]
    return str(package.__version__)
