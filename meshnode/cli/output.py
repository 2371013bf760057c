"""Output of commands: plain lines for people, ``--json`` for scripts, errors with a hint and no traceback.

All that commands print passes here, so that all of it is visible (``foreign_text``); a test holds them to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from meshnode.errors import MeshError
from meshnode.foreign_text import visible


def say(text: str = "", *, mark: str = "", err: bool = False) -> None:
    """Print one line; whatever is in ``text`` cannot make it two, nor be obeyed by the terminal.

    ``mark`` stands before it as it is: it is the program's own, and may have colours.
    """
    click.echo(mark + visible(text), err=err)


def emit(value: Mapping[str, Any], as_json: bool, *lines: str) -> None:
    """Print ``value`` as one JSON line, or ``lines``."""
    if as_json:
        click.echo(json.dumps(value))
        return
    for line in lines:
        say(line)


def fail(error: MeshError, as_json: bool) -> None:
    """Print an error; the exit code is the caller's to set."""
    if as_json:
        click.echo(json.dumps(error.to_json()))
        return
    say(f"error: {error.message}", err=True)
    if error.hint:
        say(f"hint: {error.hint}", err=True)
