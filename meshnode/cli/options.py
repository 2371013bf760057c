"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from meshnode.cli.output import say
from meshnode.errors import ConfigError

EMPTY_HOME = ConfigError("--home is empty", hint="name a directory, or leave --home out for ~/.meshnode")
EMPTY_HOME_VARIABLE = ConfigError("MESHNODE_HOME is empty", hint="name a directory in it, or unset it for ~/.meshnode")
SAY_IT_THEMSELVES = ("up", "seed", "doctor")  # they load the settings, or may have to
F = Callable[..., Any]


def _keep_home(ctx: click.Context, param: click.Parameter, value: str | None) -> Path:
    if value == "":
        raise EMPTY_HOME
    if value is None and ctx.obj is None and os.environ.get("MESHNODE_HOME") == "":
        raise EMPTY_HOME_VARIABLE
    if ctx.info_name not in SAY_IT_THEMSELVES:
        warn_of_variables()
    chosen = value or ctx.obj or "~/.meshnode"
    try:
        return Path(chosen).expanduser().absolute()
    except RuntimeError:  # no $HOME, and no entry in the user database
        from meshnode.config import expanded

        return expanded(chosen)  # says so


def warn_of_variables() -> None:
    """Warn on stderr of each ``MESHNODE_*`` variable that no setting has."""
    if all(name == "MESHNODE_HOME" for name in os.environ if name.startswith("MESHNODE_")):
        return
    from meshnode.config import unknown_variables  # 3 ms, which few commands need

    for warning in unknown_variables(os.environ):
        say(f"warning: {warning}", err=True)


class NumberRange(click.FloatRange):
    """A number within its bounds; ``nan`` is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        found = super().convert(value, param, ctx)
        if found != found:  # a NaN is within all bounds, as it is neither below nor above one
            self.fail(f"{value!r} is not a number", param, ctx)
        return found


def home_option(command: F) -> F:
    """Add ``--home`` also behind the subcommand's name."""
    return click.option("--home", callback=_keep_home, help="Where the node keeps everything (MESHNODE_HOME).")(command)


def json_option(command: F) -> F:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON: one object, or one a line.")(command)
