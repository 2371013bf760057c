"""``__init__`` of classes of fields, of which only one of each shape is compiled.

A dataclass writes the source of its ``__init__`` and compiles it, at each start of each program. Classes with as many
fields differ in names only, so one ``__init__`` is compiled for a shape, and each class has a copy with its own names:
60 us less for each of some 250 classes that a node loads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

Shape = tuple[bool, ...]  # of each field, whether a call makes its default


class _Made:
    """The default of a field in a signature where a call makes it."""

    def __repr__(self) -> str:
        return "<factory>"


MADE = _Made()


@lru_cache(None)
def _code(shape: Shape, *, frozen: bool, checked: bool, by_keyword: bool) -> CodeType:
    """Compile ``__init__`` of fields ``f0``, ``f1`` and so on; ``g1`` makes the default of ``f1``."""
    lines = []
    for number, is_made in enumerate(shape):
        given = f"f{number}"
        if is_made:
            given = f"g{number}() if f{number} is MADE else f{number}"
        lines.append(f"put(self, 'f{number}', {given})" if frozen else f"self.f{number} = {given}")
    if checked:
        lines.append("self.__post_init__()")
    names = ", ".join(f"f{number}" for number in range(len(shape)))
    head = f"def __init__(self{', *' if by_keyword and names else ''}, {names}):"
    body = "\n ".join(lines or ["pass"])
    found: dict[str, Any] = {}
    exec(f"{head}\n {body}", found)
    code: CodeType = found["__init__"].__code__
    return code


def constructor(kind: type, made_of: Sequence[Field[Any]], *, frozen: bool) -> Callable[..., None]:
    """Return an ``__init__`` that takes the fields, all by keyword or none, and calls ``__post_init__`` at the end.

    With ``frozen`` it sets them past the class's ``__setattr__``. Fields that are not to be given are left alone.
    """
    made_of = [field for field in made_of if field.init]
    shape = tuple(field.default_factory is not MISSING for field in made_of)
    by_keyword = bool(made_of) and made_of[0].kw_only
    code = _code(shape, frozen=frozen, checked=hasattr(kind, "__post_init__"), by_keyword=by_keyword)
    named: dict[Any, Any] = {f"f{number}": field.name for number, field in enumerate(made_of)}
    code = code.replace(
        co_names=tuple(named.get(name, name) for name in code.co_names),
        co_varnames=tuple(named.get(name, name) for name in code.co_varnames),
        co_consts=tuple(named.get(const, const) for const in code.co_consts) if frozen else code.co_consts,
        co_filename=f"<{kind.__qualname__}>",
    )
    calls = {f"g{number}": made_of[number].default_factory for number, is_made in enumerate(shape) if is_made}
    globals_ = {"MADE": MADE, "put": object.__setattr__, **calls} if calls else PLAIN
    defaults = {
        field.name: MADE if is_made else field.default
        for field, is_made in zip(made_of, shape, strict=True)
        if is_made or field.default is not MISSING
    }
    init = FunctionType(code, globals_, "__init__", None if by_keyword else tuple(defaults.values()))
    if by_keyword:
        init.__kwdefaults__ = defaults
    init.__qualname__ = f"{kind.__qualname__}.__init__"
    init.__module__ = kind.__module__
    init.__annotations__ = kind.__annotations__
    return init


PLAIN: dict[str, Any] = {"put": object.__setattr__}
