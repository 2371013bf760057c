"""Classes of fields that are cheap to make: values (messages, effects, events), and state that changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, field, fields
from operator import attrgetter
from typing import Any, NoReturn, TypeVar, dataclass_transform

from meshnode.base.class_fields import namespace_of

T = TypeVar("T")


def _nothing(_: object) -> tuple[()]:
    return ()


def _equal(self: Any, other: Any) -> Any:
    return self._key(self) == self._key(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(self._key(self))


def _text(self: Any) -> str:
    shown = ", ".join(f"{item.name}={getattr(self, item.name)!r}" for item in fields(self) if item.repr)
    return f"{type(self).__qualname__}({shown})"


def _refuse_set(self: object, name: str, value: object) -> NoReturn:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_delete(self: object, name: str) -> NoReturn:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _get_state(self: Any) -> list[Any]:
    return [getattr(self, item.name) for item in fields(self)]


def _set_state(self: Any, values: list[Any]) -> None:
    for item, value in zip(fields(self), values, strict=True):
        object.__setattr__(self, item.name, value)


SHARED: dict[str, Callable[..., Any]] = {"__eq__": _equal, "__hash__": _hash, "__repr__": _text}
OF_DATACLASS: dict[str, Any] = {**SHARED, "__hash__": None}
UNCHANGING: dict[str, Callable[..., Any]] = {
    **SHARED,
    "__setattr__": _refuse_set,
    "__delattr__": _refuse_delete,
    "__getstate__": _get_state,  # of copies and pickles, which would assign
    "__setstate__": _set_state,
}


def _fields(
    cls: type[T], shared: dict[str, Callable[..., Any]], *, frozen: bool = False, slots: bool = True
) -> type[T]:
    names, named = namespace_of(cls, frozen=frozen, slots=slots)
    for name, method in shared.items():
        named.setdefault(name, method)
    if "__eq__" in shared:
        named["_key"] = attrgetter(*names) if names else staticmethod(_nothing)
    kind: Any = type(cls)
    made: type[T] = kind(cls.__name__, cls.__bases__, named)
    return made


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    """Make a class a value: fields as of a dataclass with slots; equality, hash and text by them.

    It does what ``dataclass(frozen=True, slots=True)`` does, in a tenth of the time at import and a quarter for an
    instance: no method is generated. Type checkers hold that a value does not change; at run time nothing stops an
    assignment. All fields count for equality.
    """
    return _fields(cls, SHARED)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """Make a class a value that refuses assignments at run time too: for what programs are given."""
    return _fields(cls, UNCHANGING, frozen=True)


@dataclass_transform(eq_default=False, field_specifiers=(field,))
def state(cls: type[T]) -> type[T]:
    """Make a class hold state: fields as of a dataclass with slots; equal is only what is the same object.

    Half the time of ``dataclass(slots=True)`` at import, for nothing is generated.
    """
    return _fields(cls, {"__repr__": _text})


def like_dataclass(cls: type[T], *, frozen: bool = False, slots: bool = False) -> type[T]:
    """Make of a library's class what ``dataclass`` does with these options, in a tenth of the time at import."""
    return _fields(cls, UNCHANGING if frozen else OF_DATACLASS, frozen=frozen, slots=slots)
