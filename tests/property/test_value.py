"""``value`` and ``frozen`` do what ``dataclass(frozen=True, slots=True)`` does; ``state`` is compared by identity."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import KW_ONLY, FrozenInstanceError, asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.value import frozen, like_dataclass, state, value


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


@value
class Named(Point):
    """A value with the fields of another, of which it gives one a default."""

    title: str = ""
    x: int = 5


@value
class Numbered:
    """A value with what is no field."""

    kinds: ClassVar[dict[int, str]] = {}
    number: int
    note: str = field(default="", init=False)


def test_a_subclass_has_the_fields_of_its_bases_first() -> None:
    made = Named(title="t")
    assert [item.name for item in fields(made)] == ["x", "y", "names", "title"]  # type: ignore[arg-type]
    assert repr(made) == "Named(x=5, y=0, names=(), title='t')"
    assert (made == Named(5, 0, (), "t"), made == Named(5, 1, (), "t"), made == Point(5)) == (True, False, False)
    assert Named.__match_args__ == ("x", "y", "names", "title")  # type: ignore[attr-defined]
    assert Named.__slots__ == ("title",)  # type: ignore[attr-defined]
    assert Point(1) == Point(1, 0, ()), "the base is as it was"
    assert is_dataclass(Named)
    assert asdict(made)["title"] == "t"


@state
class Counted:
    """State with a field that is not given."""

    since: float = field(default=0.0, init=False)
    count: int = 0


def test_a_field_that_is_not_given_is_in_no_pattern() -> None:
    assert Counted.__match_args__ == ("count",)  # type: ignore[attr-defined]
    assert Counted(3).count == 3


def test_a_dataclass_may_have_a_value_as_its_base() -> None:
    @dataclass(slots=True)
    class Marked(Point):
        mark: str = "m"

    assert repr(Marked(1)).endswith("Marked(x=1, y=0, names=(), mark='m')")
    assert replace(Marked(1), x=2) == Marked(2)


def test_a_class_keeps_its_name_and_makes_its_constructor_once() -> None:
    @value
    class Inner:
        x: int

    assert Inner.__qualname__.endswith("<locals>.Inner")
    assert Inner(1).x == 1
    assert Inner.__init__ is vars(Inner)["__init__"]


def test_what_is_no_field_stays_an_attribute_of_the_class() -> None:
    assert [item.name for item in fields(Numbered)] == ["number", "note"]  # type: ignore[arg-type]
    assert Numbered(1).kinds is Numbered.kinds
    assert Numbered.__match_args__ == ("number",)  # type: ignore[attr-defined]


def test_a_class_that_dataclass_refuses_is_refused() -> None:
    with pytest.raises(ValueError, match="mutable default <class 'list'> for field seen"):

        @value
        class Shared:
            seen: list[int] = []  # noqa: RUF012

    with pytest.raises(TypeError, match="'seen' is a field but has no type annotation"):

        @value
        class Untyped:
            seen = field(default=1)

    with pytest.raises(TypeError, match="already specifies __slots__"):

        @value
        class Slotted:
            __slots__ = ("seen",)
            seen: int


class Plain:
    """A class as a library has it."""

    x: int
    y: list[int] = field(default_factory=list)
    z: int = field(default=3)
    note = "no field"


@pytest.mark.parametrize("options", [{}, {"slots": True}, {"frozen": True}, {"frozen": True, "slots": True}])
def test_a_librarys_class_is_what_dataclass_makes_of_it(options: dict[str, bool]) -> None:
    def copied() -> Any:
        return type("Plain", (), {k: v for k, v in vars(Plain).items() if k not in ("__dict__", "__weakref__")})

    ours, model = like_dataclass(copied(), **options), dataclass(**options)(copied())  # type: ignore[call-overload]
    for kind in (ours, model):
        one = kind(1, z=4)
        assert repr(one) == "Plain(x=1, y=[], z=4)"
        assert one == kind(1, [], 4)
        assert one != kind(2, [], 4)
        assert kind.__match_args__ == ("x", "y", "z")
        assert kind.note == "no field"
        assert hasattr(one, "__dict__") == (not options.get("slots"))
        assert hasattr(kind, "y") == bool(options.get("slots"))
        assert (kind.z == 3) == (not options.get("slots"))
        assert copy.deepcopy(one) == one
        if options.get("frozen"):
            with pytest.raises(FrozenInstanceError):
                one.x = 2
            assert hash(kind(1, (), 4)) == hash((1, (), 4))
        else:
            one.x = 2
            assert one.x == 2
            with pytest.raises(TypeError, match="unhashable"):
                hash(one)
