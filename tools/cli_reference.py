"""Write what follows from the commands: the index that ``meshnode --help`` prints, and ``docs/reference/cli.md``.

``python -m tools.cli_reference`` writes both; a test says whether they are up to date. The page keeps its hand-written
parts: only what stands between its two marks is replaced.
"""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import MISSING, Field, fields
from pathlib import Path

import click

from meshnode.cli.front import group
from meshnode.config import Config
from tools.sdk_reference import sections

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reference" / "cli.md"
INDEX = ROOT / "meshnode" / "cli" / "index.py"
BEGIN, END = "<!-- commands: written by `python -m tools.cli_reference` -->", "<!-- end of commands -->"
SETTINGS = "<!-- settings: written by `python -m tools.cli_reference` -->", "<!-- end of settings -->"


def commands() -> list[click.Command]:
    """Return all commands, sorted by name."""
    found = group.load_all()
    return [found[name] for name in sorted(found)]


def in_full() -> list[tuple[str, click.Command]]:
    """Return all commands as they are typed, a group's behind it."""
    found: list[tuple[str, click.Command]] = []
    for command in commands():
        inner = command.commands if isinstance(command, click.Group) else {}
        found.append((str(command.name), command))
        found += [(f"{command.name} {name}", inner[name]) for name in sorted(inner)]
    return found


def summary(command: click.Command) -> str:
    """The first line of a command's help."""
    return inspect.cleandoc(command.help or "").splitlines()[0]


def index() -> str:
    """The text of ``meshnode/cli/index.py``."""
    lines = ['"""Where each command is, and its help line. Written by ``python -m tools.cli_reference``."""', ""]
    lines.append("INDEX = {")
    for command in commands():
        assert command.callback is not None
        module = command.callback.__module__.rpartition(".")[2]
        lines.append(f'    "{command.name}": ("{module}", "{summary(command)}"),')
    return "\n".join([*lines, "}"]) + "\n"


def usage(name: str, command: click.Command) -> str:
    """How a command is typed, without its options."""
    context = click.Context(command, info_name=f"meshnode {name}")
    return " ".join([context.command_path, *(p.make_metavar(context) for p in _arguments(command))])


def _arguments(command: click.Command) -> list[click.Argument]:
    return [p for p in command.params if isinstance(p, click.Argument)]


def section(name: str, command: click.Command) -> str:
    """One command as Markdown: usage, what it does, options."""
    text = inspect.cleandoc(command.help or "")
    prose, _, example = text.partition("\b\n")
    prose = re.sub(r"^JSON: (.+)", lambda found: "JSON: `" + " ".join(found[1].split()) + "`", prose, flags=re.M | re.S)
    parts = [f"### {name}", f"    {usage(name, command)}", re.sub(r"\n\n+", "\n\n", prose.strip())]
    context = click.Context(command)
    options = [p for p in command.params if isinstance(p, click.Option) and p.name not in ("home", "as_json")]
    records = [record for option in options if (record := option.get_help_record(context)) is not None]
    if records:
        parts.append("\n".join(f"- `{names}`: {' '.join(told.split())}" for names, told in records))
    shown = [line.removeprefix("Example:").strip() for line in example.splitlines() if line.strip()]
    parts.append("\n".join(f"    {line}" for line in shown))
    return "\n\n".join(parts)


def settings() -> str:
    """All settings of ``meshnode.toml`` and the environment, from the docstring of ``Config``."""
    told = dict(sections(Config.__doc__ or ""))["Attributes"]
    entries: list[str] = []
    for line in inspect.cleandoc("\n".join(told)).splitlines():
        if line.startswith(" "):
            entries[-1] += " " + line.strip()
        elif line:
            entries.append(line)
    meaning = dict(entry.partition(": ")[::2] for entry in entries)
    rows = ["| setting | environment | default | meaning |", "|---|---|---|---|"]
    for item in fields(Config):  # one without a sentence in the docstring is an error
        text = meaning[item.name].replace("``", "`")
        rows.append(f"| `{item.name}` | `MESHNODE_{item.name.upper()}` | {_default(item)} | {text} |")
    return "\n".join(rows)


def _default(item: Field[object]) -> str:
    """A setting's default as ``meshnode.toml`` writes it."""
    value = "~/.meshnode" if item.default is MISSING else item.default
    if value is None:
        return "none"
    shown = list(value) if isinstance(value, tuple) else value
    return f"`{json.dumps(shown)}`"


def page(text: str) -> str:
    """The page with its written parts replaced."""
    text = _between(text, BEGIN, END, "\n\n".join(section(name, command) for name, command in in_full()))
    return _between(text, *SETTINGS, settings())


def _between(text: str, begin: str, end: str, body: str) -> str:
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{body}\n\n{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    INDEX.write_text(index())
    PAGE.write_text(page(PAGE.read_text()))
