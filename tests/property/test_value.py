"""``value`` and ``frozen`` do what ``dataclass(frozen=True, slots=True)`` does; ``state`` is compared by identity."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import KW_ONLY, FrozenInstanceError, dataclass, field, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.value import frozen, state, value


@value
class Point:
    """A value."""

    x: int
    y: int = 0
    names: tuple[str, ...] = field(default=())

    def total(self) -> int:
        """Return the sum."""
        return self.x + self.y


@value
class Other:
    """A value of another class with the same fields."""

    x: int
    y: int = 0
    names: tuple[str, ...] = ()


@value
class Empty:
    """A value without fields."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """The model."""

    x: int
    y: int = 0
    names: tuple[str, ...] = ()


arguments = st.tuples(st.integers(0, 2), st.integers(0, 1), st.tuples(st.sampled_from(["a", "b"])))


@given(arguments, arguments)
def test_equality_and_hash_follow_the_fields(one: Any, other: Any) -> None:
    assert (Point(*one) == Point(*other)) == (Frozen(*one) == Frozen(*other)) == (one == other)
    assert (hash(Point(*one)) == hash(Point(*other))) or one != other
    assert len({Point(*one), Point(*other)}) == len({one, other})
    assert Point(*one) != Other(*one)
    assert Point(*one) != one


@given(arguments)
def test_text_fields_and_patterns_are_those_of_a_dataclass(one: Any) -> None:
    made = Point(*one)
    assert repr(made) == repr(Frozen(*one)).replace("Frozen", "Point")
    assert [item.name for item in fields(made)] == ["x", "y", "names"]  # type: ignore[arg-type]
    assert replace(made, y=7) == Point(one[0], 7, one[2])  # type: ignore[type-var]
    match made:
        case Point(x, y, names):
            assert (x, y, names) == one
    assert made.total() == one[0] + one[1]
    assert not hasattr(made, "__dict__")


def test_a_value_without_fields() -> None:
    assert Empty() == Empty()
    assert len({Empty(), Empty()}) == 1
    assert repr(Empty()) == "Empty()"
    assert Empty() != Point(1)


@state
class Counter:
    """State."""

    count: int
    seen: list[int] = field(default_factory=list)


def test_state_has_fields_changes_and_equals_only_itself() -> None:
    one, other = Counter(1), Counter(1)
    one.seen.append(2)
    one.count += 1
    assert (one.count, one.seen, other.seen) == (2, [2], [])
    assert one != other
    assert one == one
    assert len({one, other}) == 2
    assert repr(one) == "Counter(count=2, seen=[2])"
    assert not hasattr(one, "__dict__"), "slots"


@frozen
class Place:
    """A value that refuses assignments."""

    name: str
    f1: int = 3  # named as the second field of the shape is
    seen: list[int] = field(default_factory=list, repr=False)


@frozen
class Options:
    """A value whose fields are given by keyword, and checked."""

    _: KW_ONLY
    home: str
    size: int = 1
    parts: tuple[str, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("size")
        object.__setattr__(self, "home", self.home.upper())


def test_a_frozen_value_refuses_changes_and_can_be_copied() -> None:
    place = Place("a", seen=[1])
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'f1'"):
        place.f1 = 4  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError, match="cannot delete field 'name'"):
        del place.name
    assert (place.name, place.f1, place.seen) == ("a", 3, [1])
    assert repr(place) == "Place(name='a', f1=3)"
    for other in (copy.copy(place), copy.deepcopy(place), pickle.loads(pickle.dumps(place)), replace(place)):  # type: ignore[type-var]
        assert other == place
    assert Place("a").seen is not Place("a").seen
    assert Place("a", 4) != Place("a")


def test_fields_by_keyword_are_checked_and_defaulted() -> None:
    made = Options(home="a")
    assert (made.home, made.size, made.parts) == ("A", 1, ())
    assert replace(made, size=2).size == 2  # type: ignore[type-var]
    with pytest.raises(ValueError, match="size"):
        Options(home="a", size=-1)
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'home'"):
        Options()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        Options("a")  # type: ignore[misc]


def test_a_wrong_call_names_the_class_and_the_field() -> None:
    with pytest.raises(TypeError, match=r"Point.__init__\(\) missing 1 required positional argument: 'x'"):
        Point()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        Point(1, z=2)  # type: ignore[call-arg]
    assert str(inspect.signature(Point)) == "(x: 'int', y: 'int' = 0, names: 'tuple[str, ...]' = ())"
    assert str(inspect.signature(Counter)) == "(count: 'int', seen: 'list[int]' = <factory>)"
