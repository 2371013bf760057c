"""Requests of the control socket: checked in one place, and all that a new command takes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from meshnode.base.metrics import Metrics
from meshnode.cli.ask import ask_one
from meshnode.cli.front import group
from meshnode.cli.index import INDEX
from meshnode.cli.options import home_option, json_option
from meshnode.cli.output import emit
from meshnode.daemon.paths import socket_path
from meshnode.daemon.request import Request, build, encode, known_requests, nesting, parse, request
from meshnode.daemon.requests.node import Ping
from meshnode.daemon.requests.services import Expose
from meshnode.daemon.server import MAX_REQUEST, ControlServer
from meshnode.errors import MeshError
from meshnode.runtime.acceptor import Accepted
from tools import cli_reference

EXAMPLES: dict[str, Any] = {
    "str": "text",
    "int": 3,
    "float": 1.5,
    "bool": True,
    "str | None": None,
    "bool | None": False,
    "int | None": 4,
    "tuple[str, ...]": ("a", "b"),
    "dict[str, str]": {"k": "v"},
}


@pytest.mark.parametrize("method", sorted(known_requests()))
def test_every_request_comes_out_of_the_socket_as_it_went_in(method: str) -> None:
    kind = known_requests()[method]
    asked = kind(**{field.name: EXAMPLES[str(field.type)] for field in fields(kind)})  # type: ignore[arg-type]
    found = parse(encode(asked))
    assert (type(found), repr(found)) == (kind, repr(asked))
    with pytest.raises((FrozenInstanceError, TypeError)):
        found.anything = 1  # type: ignore[attr-defined]


WRONG: dict[str, tuple[str, str]] = {
    "not JSON": ("{", "a line is"),
    "nested a thousand deep": ("[" * 100_000, "a line is"),
    "no object": ("[1]", "a line is"),
    "arguments that are a list": ('{"method": "ping", "arguments": []}', "a line is"),
    "unknown method": ('{"method": "frobnicate", "arguments": {}}', "knows no 'frobnicate'"),
    "unknown field": ('{"method": "status", "arguments": {"deep": 1}}', "status has no 'deep'"),
    "missing field": ('{"method": "ping", "arguments": {"id": "x"}}', "ping needs 'count'"),
    "deeply nested": ("[" * 60_000, "a line is {method, arguments}"),
    "deeply nested in its place": (
        '{"method": "status", "arguments": {"x": ' + "[" * 20_000 + "]" * 20_000 + "}}",
        "a line is {method, arguments}",
    ),
    "text for a number": (
        '{"method": "ping", "arguments": {"id": "x", "count": "3"}}',
        "count of ping is a whole number",
    ),
    "switch for a number": ('{"method": "ping", "arguments": {"id": "x", "count": true}}', "count of ping is a whole"),
    "number for a text": ('{"method": "resolve", "arguments": {"id": 5}}', "id of resolve is a text, not 5"),
    "null for a text": ('{"method": "resolve", "arguments": {"id": null}}', "id of resolve is a text"),
    "text for a list": (
        '{"method": "expose", "arguments": {"name": "a", "target": "b", "allow": "any"}}',
        "allow of expose is a list",
    ),
    "numbers in a list": (
        '{"method": "expose", "arguments": {"name": "a", "target": "b", "allow": [1]}}',
        "each allow of expose is a text",
    ),
    "number in an object": (
        '{"method": "expose", "arguments": {"name": "a", "target": "b", "meta": {"v": 1}}}',
        "'v' in meta of expose is a text",
    ),
    "text for a switch": (
        '{"method": "expose", "arguments": {"name": "a", "target": "b", "announce": "no"}}',
        "announce of expose is true or false",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_request_is_refused_with_what_is_wrong(case: str) -> None:
    line, said = WRONG[case]
    with pytest.raises(MeshError) as caught:
        parse(line.encode())
    assert said in caught.value.message
    assert caught.value.hint


def test_brackets_in_texts_do_not_count_as_nested() -> None:
    text = "[" * 100 + '\\"' + "{" * 100
    line = json.dumps({"method": "resolve", "arguments": {"id": text}}).encode()
    assert nesting(line) == 2
    assert repr(parse(line)) == repr(build("resolve", {"id": text}))


def test_fields_that_were_left_out_have_their_defaults_and_a_whole_number_is_a_number() -> None:
    assert repr(build("ping", {"id": "x", "count": 2})) == repr(Ping("x", 2))
    assert build("ping", {"id": "x", "count": 2, "interval": 1}).interval == 1  # type: ignore[attr-defined]
    exposed = build("expose", {"name": "a", "target": "b", "allow": ["any"]})
    assert repr(exposed) == repr(Expose("a", "b", ("any",)))


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Path]:
    nothing: Any = None
    server = ControlServer(nothing, tmp_path, Accepted(Metrics()))
    await server.start()
    yield tmp_path
    await server.close()


async def test_a_line_that_is_too_long_is_answered_with_an_error(home: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(str(socket_path(home)))
    writer.write(b'{"method": "status", "arguments": {}}'.ljust(2 * MAX_REQUEST) + b"\n")
    answer = json.loads(await asyncio.wait_for(reader.readline(), 10))
    assert answer["error"]["message"] == "the request is too long: it has more than 64 kB"
    writer.close()


async def test_a_new_command_is_one_function_and_one_request_class(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Everything else follows: dispatch, checks, ``--home``, ``--json``, help, the page and the index."""
    import asyncio

    known: Any = known_requests()
    try:

        @request("double")
        class Double(Request):
            number: int

            async def answer(self, daemon: Any) -> AsyncIterator[dict[str, Any]]:
                yield {"doubled": 2 * self.number}

        @click.command("double")
        @click.argument("number", type=int)
        @home_option
        @json_option
        def double_command(number: int, home: Path, as_json: bool) -> None:
            """Double a number.

            \b
            Example: meshnode double 3
            """
            found = ask_one(home, Double(number))
            emit(found, as_json, f"twice {number} is {found['doubled']}")

        import meshnode.cli.commands.node as module

        monkeypatch.setattr(module, "double_command", double_command, raising=False)
        run = ["--home", str(home), "double", "21"]
        done = await asyncio.to_thread(CliRunner().invoke, group, run)
        assert done.output == "twice 21 is 42\n"
        done = await asyncio.to_thread(CliRunner().invoke, group, [*run, "--json"])
        assert json.loads(done.output) == {"doubled": 42}
        assert '"double": (' in cli_reference.index()
        assert "    meshnode double NUMBER" in cli_reference.page(cli_reference.PAGE.read_text())
    finally:
        known.pop("double", None)


# ---- what follows from the commands


def test_the_index_is_what_the_commands_say() -> None:
    assert cli_reference.INDEX.read_text() == cli_reference.index(), "run python -m tools.cli_reference"


def test_the_page_is_what_the_commands_say() -> None:
    text = cli_reference.PAGE.read_text()
    assert text == cli_reference.page(text), "run python -m tools.cli_reference"


@pytest.mark.parametrize("name", sorted(INDEX))
def test_the_page_has_every_command_and_every_option(name: str) -> None:
    text = cli_reference.PAGE.read_text().split(f"### {name}\n")[1].split("\n### ")[0].split("<!--")[0]
    command = group.load_all()[name]
    options = [opt for p in command.params if isinstance(p, click.Option) for opt in p.opts]
    for option in set(options) - {"--home", "--json"}:
        assert f"{option}" in text


def test_commands_and_requests_are_loaded_without_the_stack() -> None:
    code = "import sys; from meshnode.cli.front import group; from meshnode.daemon.request import known_requests\n"
    code += "import meshnode.daemon.client\nassert len(group.load_all()) > 20 and len(known_requests()) > 15\n"
    code += "loaded = [m for m in ('asyncio', 'aioquic', 'nacl', 'zeroconf', 'meshnode.sdk') if m in sys.modules]\n"
    code += "assert not loaded, loaded"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_a_help_line_fits_a_line() -> None:
    for name, (_, line) in INDEX.items():
        assert line.endswith("."), name
        assert len(line) <= 72, name


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands(shell: str) -> None:
    done = CliRunner().invoke(group, ["completion", shell])
    assert done.exit_code == 0
    assert "_MESHNODE_COMPLETE" in done.output
    words = {"COMP_WORDS": "meshnode unf", "COMP_CWORD": "unf" if shell == "fish" else "1"}
    env = {"_MESHNODE_COMPLETE": f"{shell}_complete", **words}
    done = CliRunner().invoke(group, [], env=env, prog_name="meshnode")
    assert "unforward" in done.output
