"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from meshnode.errors import ConfigError

EMPTY_HOME = ConfigError("--home is empty", hint="name a directory, or leave --home out for ~/.meshnode")
F = Callable[..., Any]


def _keep_home(ctx: click.Context, param: click.Parameter, value: str | None) -> Path:
    if value == "":
        raise EMPTY_HOME
    chosen = value if value is not None else ctx.obj or "~/.meshnode"
    return Path(chosen).expanduser().absolute()


def home_option(command: F) -> F:
    """Add ``--home`` also behind the subcommand's name."""
    return click.option("--home", callback=_keep_home, help="Where the node keeps everything (MESHNODE_HOME).")(command)


def json_option(command: F) -> F:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON: one object, or one a line.")(command)
