"""Output of commands: plain lines for people, ``--json`` for scripts, errors with a hint and no traceback."""

from __future__ import annotations

import json
from typing import Any

import click

from meshnode.errors import MeshError


def visible(text: str) -> str:
    """Return ``text`` with all that a terminal would obey escaped: other nodes chose these characters."""
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


def emit(value: dict[str, Any], as_json: bool, text: str) -> None:
    """Print ``value`` as one JSON line, or ``text``, which may have several lines."""
    click.echo(json.dumps(value) if as_json else "\n".join(map(visible, text.split("\n"))))


def fail(error: MeshError, as_json: bool) -> None:
    """Print an error; the exit code is the caller's to set."""
    if as_json:
        click.echo(json.dumps(error.to_json()))
        return
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)
