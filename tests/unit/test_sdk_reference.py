"""The SDK page says what there is: it follows from the docstrings, and the objects show nothing else."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

import meshnode
from meshnode.quic.connection import Connection as Link
from meshnode.sdk.connection import Connection
from meshnode.sdk.streams import MeshReader, MeshWriter
from tools import sdk_reference

FACE = [name for name, members in sdk_reference.CLASSES.items() if members == sdk_reference.ALL]


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def test_the_page_is_what_the_docstrings_say() -> None:
    assert sdk_reference.PAGE.read_text() == sdk_reference.page(), "run python -m tools.sdk_reference"


def test_a_node_shows_what_is_documented_and_nothing_else(tmp_path: Path) -> None:
    node = meshnode.Node(meshnode.Config(home=tmp_path))
    text = sdk_reference.PAGE.read_text()
    documented = {line.removeprefix("### node.") for line in text.splitlines() if line.startswith("### node.")}
    assert public(node) == documented
    assert len(vars(node)) <= 14


async def test_what_a_node_hands_out_shows_what_is_documented_and_nothing_else() -> None:
    nothing: Any = None
    link: Any = object.__new__(Link)
    shown = {
        "Connection": Connection(link, nothing),
        "MeshReader": MeshReader(nothing, nothing),
        "MeshWriter": MeshWriter(nothing, nothing),
    }
    for name, thing in shown.items():
        assert public(thing) == set(sdk_reference.shown_members(name))


def documented_functions() -> list[tuple[str, str]]:
    return [(owner, name) for owner in sdk_reference.CLASSES for name in sdk_reference.shown_members(owner)]


@pytest.mark.parametrize(("owner", "name"), documented_functions())
def test_each_member_is_explained_with_all_its_parameters(owner: str, name: str) -> None:
    raw = inspect.getattr_static(getattr(meshnode, owner), name)
    function = getattr(raw, "__func__", raw)
    assert (function.__doc__ or "").splitlines()[0].endswith((".", ":"))
    if inspect.isfunction(function):
        parameters = [each for each in inspect.signature(function).parameters if each not in ("self", "cls")]
        said = dict(sdk_reference.sections(function.__doc__ or ""))
        if parameters:
            assert [line.split(":")[0].strip() for line in said["Args"] if line[:5].strip(" ")] == parameters


@pytest.mark.parametrize(("owner", "name"), documented_functions())
def test_each_function_says_what_it_returns(owner: str, name: str) -> None:
    raw = inspect.getattr_static(getattr(meshnode, owner), name)
    function = getattr(raw, "__func__", raw)
    if inspect.isfunction(function) and inspect.signature(function).return_annotation not in ("None", "NoReturn"):
        text = function.__doc__ or ""
        assert "Returns" in dict(sdk_reference.sections(text)) or text.startswith(("Return ", "Yield "))


def test_each_field_of_what_programs_are_given_is_explained() -> None:
    for owner in sdk_reference.CLASSES:
        fields = getattr(getattr(meshnode, owner), "__dataclass_fields__", {})
        said = dict(sdk_reference.sections(getattr(meshnode, owner).__doc__ or ""))
        lines = said.get("Attributes", [])
        assert [line.split(":")[0].strip() for line in lines if line[:5].strip(" ")] == [*fields] or not fields


def test_each_event_kind_is_explained() -> None:
    rows = sdk_reference.enum_values(meshnode.EventKind).splitlines()[2:]
    assert len(rows) == len(meshnode.EventKind)
    assert all(row.split("|")[3].strip() for row in rows)


@pytest.mark.parametrize("owner", [name for name in meshnode.__all__ if inspect.isclass(getattr(meshnode, name))])
def test_each_method_that_a_program_calls_says_more_than_one_line(owner: str) -> None:
    methods = [value for name, value in vars(getattr(meshnode, owner)).items() if not name.startswith("_")]
    functions = [getattr(value, "__func__", value) for value in methods]
    short = [f.__qualname__ for f in functions if inspect.isfunction(f) and "\n" not in (f.__doc__ or "")]
    assert short == []
