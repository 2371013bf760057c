"""What ``import meshnode`` gives: every name, cheaply; and errors that fit both our tree and Python's families."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import meshnode
import meshnode.errors as errors
from meshnode.errors import GrantError, GrantReject, MeshError, RecordError, RecordReject
from tools import usage

ERRORS = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, MeshError)
}
FAMILIES = (
    ValueError,
    LookupError,
    RuntimeError,
    OSError,
    ImportError,
)  # OSError: also ConnectionError, PermissionError, TimeoutError


def test_every_public_name_can_be_imported_and_is_listed() -> None:
    for name in meshnode.__all__:
        assert getattr(meshnode, name) is not None
    assert sorted(meshnode.__all__) == sorted(set(dir(meshnode)))
    with pytest.raises(AttributeError, match="Nod"):
        _ = meshnode.Nod  # type: ignore[attr-defined]


def test_every_error_is_exported() -> None:
    assert set(ERRORS) - set(meshnode.__all__) == set()
    assert all(getattr(meshnode, name) is value for name, value in ERRORS.items())


def test_checkers_are_shown_exactly_what_exists() -> None:
    source = Path(meshnode.__file__).read_text()
    shown = source.split("if TYPE_CHECKING:\n")[1].split("__version__ =")[0]
    listed = {name.strip("(), ") for line in shown.splitlines() for name in line.split("import")[-1].split(",")}
    assert listed - {"", "Any"} | {"__version__"} == set(meshnode.__all__)


def test_the_import_is_cheap() -> None:
    code = "import sys, meshnode; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name for name in loaded if name.startswith("meshnode.")} == set()
    assert {"asyncio", "nacl", "cbor2", "aioquic", "zeroconf", "dataclasses"} & set(loaded) == set()


@pytest.mark.parametrize("name", sorted(set(ERRORS) - {"MeshError"}))
def test_each_error_is_of_one_of_pythons_families_too_and_keeps_its_fields(name: str) -> None:
    kind: Any = ERRORS[name]
    assert issubclass(kind, FAMILIES)
    if issubclass(kind, RecordError):
        assert kind(RecordReject.FORGED).reason is RecordReject.FORGED
        return
    if issubclass(kind, GrantError):
        assert kind(GrantReject.FORGED).reason is GrantReject.FORGED
        return
    error = kind("what happened", hint="what to do")
    assert str(error) == error.message == "what happened"
    assert error.to_json() == {"error": {"code": kind.code, "message": "what happened", "hint": "what to do"}}


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_an_error_comes_whole_out_of_another_process(name: str) -> None:
    kind: Any = ERRORS[name]
    if issubclass(kind, RecordError | GrantError):
        error = kind(RecordReject.EXPIRED if issubclass(kind, RecordError) else GrantReject.EXPIRED)
    else:
        error = kind("what happened", hint="what to do")
    error.add_note("where")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is kind
        assert (str(other), vars(other)) == (str(error), vars(error))


def test_codes_are_unique() -> None:
    assert len({kind.code for kind in ERRORS.values()}) == len(ERRORS)


def test_the_tree_at_the_top_of_the_file_is_the_tree_of_the_classes() -> None:
    tree = (errors.__doc__ or "").split("\n\n")[1].splitlines()
    assert {line.split()[0] for line in tree} == set(ERRORS)
    parents: list[type] = []
    for line in tree:
        depth = (len(line) - len(line.lstrip())) // 2
        kind = ERRORS[line.split()[0]]
        del parents[depth:]
        assert not parents or kind.__bases__[0] is parents[-1]
        if len(kind.__bases__) == 2:
            assert line.endswith(f"[{kind.__bases__[1].__name__}]")
        parents.append(kind)


def test_a_mistake_that_a_checker_does_not_find_and_an_error_in_correct_code_are_both_told() -> None:
    expected = usage.marked("x = 1\ny = z  # error\n")
    assert expected == {2}
    assert usage.problems({usage.GOOD: set(), usage.BAD: {2}}, expected) == []
    assert usage.problems({usage.GOOD: {1}, usage.BAD: set()}, expected) == [
        f"{usage.GOOD}:1: an error in correct code",
        f"{usage.BAD}:2: no error found",
    ]
    assert usage.problems({usage.GOOD: set(), usage.BAD: {1, 2}}, expected) == [
        f"{usage.BAD}:1: an error on a line without a mark"
    ]
