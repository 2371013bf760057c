"""``value`` does what ``dataclass(frozen=True, slots=True)`` does; ``state`` is compared by identity."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.value import state, value


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
