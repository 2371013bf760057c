"""Fields of a class, found without ``dataclass()``, and what is made of them when it is first used.

``dataclass()`` looks at each annotation by regular expressions and at each class several times, 0.2 ms for each of some
140 classes that a node loads, of which it makes instances of a third before its first byte is sent. ``fields``,
``replace`` and ``is_dataclass`` take these classes too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from meshnode.base.constructors import constructor

FIELDS = "__dataclass_fields__"
LATE = {"__annotate__", "__annotate_func__"}  # in the namespace of a class whose annotations are code (PEP 649)
OF_EACH = ("__dict__", "__weakref__", FIELDS)  # of the namespace of a class: another class has its own


@dataclass(init=False, repr=False, eq=False)
class _Model:
    """The class whose parameters the others take."""

    any: int


REAL: Any = fields(_Model)[0]._field_type  # type: ignore[attr-defined]
GIVEN = {name: made for name, made in vars(_Model).items() if name in ("__dataclass_params__", "__replace__")}


class LateFields:
    """The fields of a class by name, bases first, made when they are first read."""

    __slots__ = ("_bases", "_defaults", "_kinds", "_made", "names")

    def __init__(self, cls: type, kinds: dict[str, str]) -> None:
        own = vars(cls)
        self._kinds = kinds
        self._defaults = {name: own[name] for name in kinds if name in own}
        self._bases = [base for base in cls.__mro__[-1:0:-1] if FIELDS in vars(base)]
        self._made: dict[str, Field[Any]] | None = None
        names = dict.fromkeys(name for base in self._bases for name in getattr(base, FIELDS)) if self._bases else {}
        self.names = [*{**names, **kinds}]
        _check(own, self._defaults)

    def __get__(self, instance: object, owner: type | None = None) -> dict[str, Field[Any]]:
        made = self._made
        if made is None:
            made = {}
            for base in self._bases:
                made.update(getattr(base, FIELDS))
            for name, kind in self._kinds.items():
                made[name] = _field(name, kind, self._defaults.get(name, MISSING))
            self._made = made
        return made

    def to_match(self) -> tuple[str, ...]:
        """Return the names that a pattern gives in order."""
        if self._bases or any(type(default) is Field for default in self._defaults.values()):
            return tuple(item.name for item in self.__get__(None).values() if item.init and not item.kw_only)
        return tuple(self.names)


def _check(own: Any, defaults: dict[str, Any]) -> None:
    for name, default in defaults.items():
        if type(default) is not Field and default.__class__.__hash__ is None:
            raise ValueError(f"mutable default {type(default)} for field {name} is not allowed: use default_factory")
    for name, default in own.items():
        if type(default) is Field and name not in defaults:
            raise TypeError(f"{name!r} is a field but has no type annotation")


def _field(name: str, kind: str, default: Any) -> Field[Any]:
    item: Any = default if type(default) is Field else field(default=default)
    item.name, item.type, item.kw_only, item._field_type = name, kind, item.kw_only is True, REAL
    made: Field[Any] = item
    return made


class LateInit:
    """``__init__`` of a class of fields, made at its first instance."""

    __slots__ = ("_cls", "_frozen")

    def __init__(self, *, frozen: bool) -> None:
        self._frozen = frozen

    def __set_name__(self, owner: type, name: str) -> None:
        self._cls = owner

    def __get__(self, instance: object, owner: type | None = None) -> Callable[..., None]:
        cls: Any = self._cls
        made: Any = constructor(cls, fields(cls), frozen=self._frozen)
        cls.__init__ = made
        bound: Callable[..., None] = made.__get__(instance, owner)
        return bound


def found(cls: type) -> LateFields | None:
    """Return the fields of a class; None when ``dataclass()`` has to find them."""
    own = vars(cls)
    if not LATE.isdisjoint(own):
        return None
    kinds: dict[str, Any] = own.get("__annotations__", {})
    for kind in kinds.values():
        if type(kind) is not str or "ClassVar" in kind or "InitVar" in kind or "KW_ONLY" in kind:
            return None
    return LateFields(cls, kinds)


def _class_defaults(own: Any, names: list[str]) -> dict[str, Any]:
    """Return the defaults that stay attributes of a class without slots."""
    given = {name: own[name] for name in names if name in own}
    plain = {name: thing.default if type(thing) is Field else thing for name, thing in given.items()}
    return {name: default for name, default in plain.items() if default is not MISSING}


def namespace_of(cls: type, *, frozen: bool, slots: bool) -> tuple[list[str], dict[str, Any]]:
    """Return the names of the fields of ``cls``, and what the class with ``__init__`` and slots consists of."""
    own = vars(cls)
    if "__slots__" in own:
        raise TypeError(f"{cls.__name__} already specifies __slots__")
    made: Any = found(cls)
    if made is None:
        cls.__doc__ = cls.__doc__ or cls.__name__  # or dataclass() writes the signature there
        with_fields: Any = dataclass(init=False, repr=False, eq=False)(cls)
        own = vars(with_fields)
        made, names, to_match = own[FIELDS], [item.name for item in fields(with_fields)], own["__match_args__"]
    else:
        names, to_match = made.names, made.to_match()
    named = {name: thing for name, thing in own.items() if name not in names and name not in OF_EACH}
    if slots:
        inherited = {slot for base in cls.__mro__[1:-1] for slot in vars(base).get("__slots__", ())}
        named["__slots__"] = tuple(name for name in names if name not in inherited)
    else:
        named.update(_class_defaults(own, names))
    named["__qualname__"] = cls.__qualname__
    named[FIELDS] = made
    named.setdefault("__match_args__", to_match)
    named.setdefault("__init__", LateInit(frozen=frozen))
    named["__doc__"] = cls.__doc__ or cls.__name__
    named.update(GIVEN)
    return names, named
