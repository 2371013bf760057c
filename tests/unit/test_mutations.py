"""``./dev mutate``: the changes that it makes, and that its lists belong to the code of today."""

from __future__ import annotations

import ast
import tomllib

import pytest

from bench.mutate import CORES, DATA, ROOT, changed, named, sampled
from bench.mutations import mutations, sample

SOURCE = b'''"""A module."""
LIMIT = 4

def late(now: float, at: float, seen: list[int], *, known: bool = False) -> bool:
    """Say whether it is late."""
    if not known and now - at > 0.5 and len(seen) < LIMIT:
        seen.append(1)
        return now > at
    return known
'''


def test_each_small_change_is_one_place_of_valid_code() -> None:
    found = mutations("late.py", SOURCE)
    assert {(change.where, change.old, change.new) for change in found} == {
        ("<module>", "4", "5"),
        (
            "late",
            "not known and now - at > 0.5 and len(seen) < LIMIT",
            "(not known or now - at > 0.5 or len(seen) < LIMIT)",
        ),
        ("late", "not known", "(known)"),
        ("late", "now - at > 0.5", "(now - at <= 0.5)"),
        ("late", "now - at", "(now + at)"),
        ("late", "0.5", "1.0"),
        ("late", "len(seen) < LIMIT", "(len(seen) >= LIMIT)"),
        ("late", "len(seen) < LIMIT", "(len(seen) <= LIMIT)"),
        ("late", "seen.append(1)", "pass"),
        ("late", "1", "2"),
        ("late", "return now > at", "return None"),
        ("late", "now > at", "(now <= at)"),
        ("late", "return known", "return None"),
    }
    for change in found:
        ast.parse(change.applied(SOURCE))


def test_what_is_drawn_does_not_depend_on_the_code_around_it() -> None:
    before = {change.key for change in sample(mutations("late.py", SOURCE), 6, "1")}
    longer = b"FIRST = 1\n\n" + SOURCE + b"\n\ndef more() -> None:\n    print(2)\n"
    after = {change.key for change in sample(mutations("late.py", longer), 6 + 3, "1")}  # three changes are new
    assert before <= after
    assert before != {change.key for change in sample(mutations("late.py", SOURCE), 6, "2")}


def test_a_named_change_is_made_once_and_where_it_is_named() -> None:
    source = "class A:\n    def one(self):\n        return 1\n\n    def two(self):\n        return 1\n"
    assert changed(source, "A.two", [["1", "2"]]) == source[: source.rindex("1")] + "2\n"
    assert changed("a = 1\nb = 2\n", None, [["1", "3"], ["2", "1"]]) == "a = 3\nb = 1\n"
    for where in (None, "A", "A.three"):
        with pytest.raises(ValueError, match="occurs"):
            changed(source, where, [["return 1", "pass"]])


def test_each_named_change_fits_the_code_of_today() -> None:
    changes = named()
    assert len(changes) >= 94
    for change in changes:
        ast.parse(change.text)
        assert all((ROOT / test).exists() for test in change.tests), change.name


@pytest.mark.parametrize("core", CORES)
def test_each_core_has_code_and_tests(core: str) -> None:
    changes = sampled(core, 25, "1")
    assert len(changes) == 25
    assert all((ROOT / test.partition("::")[0]).exists() for test in CORES[core].tests)
    for change in changes:
        ast.parse(change.text)


def test_each_survivor_has_a_reason_and_is_in_the_code_of_today() -> None:
    reasons = tomllib.loads((DATA / "survivors.toml").read_text())["survivors"]
    keys = {
        change.key
        for core in CORES.values()
        for pattern in core.files
        for path in ROOT.glob(pattern)
        for change in mutations(str(path.relative_to(ROOT)), path.read_bytes())
    }
    assert set(reasons) <= keys
    assert all(len(reason) > 20 for reason in reasons.values())
