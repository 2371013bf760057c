"""The group of all commands: finds a command's module only when it is asked for, and prints errors.

``INDEX`` follows from the commands (``python -m tools.cli_reference``), so that ``--help`` need not load them.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module
from io import StringIO, TextIOWrapper

import click

from meshnode.cli.index import INDEX
from meshnode.cli.options import EMPTY_HOME
from meshnode.cli.output import fail, say
from meshnode.errors import MeshError

COMMANDS = "meshnode.cli.commands"
INTERRUPTED = 130
NO_THREAD = "can't start new thread"  # what CPython's RuntimeError says


class Front(click.Group):
    """The group of all commands, each loaded from its module in ``cli/commands/`` when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names that the index has."""
        return sorted(INDEX)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return one command; one that the index has not yet is looked for in all modules."""
        if cmd_name not in INDEX:
            return self.load_all().get(cmd_name)
        return _commands_in(f"{COMMANDS}.{INDEX[cmd_name][0]}")[cmd_name]

    def load_all(self) -> dict[str, click.Command]:
        """Import every module of commands."""
        from pkgutil import iter_modules

        modules = iter_modules(import_module(COMMANDS).__path__, f"{COMMANDS}.")
        return {name: command for module in modules for name, command in _commands_in(module.name).items()}

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one is answered with those that are spelt like it.

        Raises UsageError.
        """
        if args and args[0] == "help":
            args = [*args[1:2], "--help"]
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            from difflib import get_close_matches  # only for a mistake

            close = get_close_matches(args[0], INDEX, n=3, cutoff=0.5)
            hint = f" Did you mean {', '.join(close)}?" if close else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, INDEX[name][1]) for name in self.list_commands(ctx)])


def _commands_in(module: str) -> dict[str, click.Command]:
    found = [value for value in vars(import_module(module)).values() if isinstance(value, click.Command)]
    inner = {id(command) for each in found if isinstance(each, click.Group) for command in each.commands.values()}
    return {str(command.name): command for command in found if id(command) not in inner}


@click.group(cls=Front, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--home",
    show_default="~/.meshnode",
    envvar="MESHNODE_HOME",
    help="Where one node keeps its key, state and control socket.",
)
@click.version_option(package_name="meshnode")
@click.pass_context
def group(ctx: click.Context, home: str | None) -> None:
    """A userspace mesh: a program's address is its public key.

    \b
    meshnode up                              run a node here
    meshnode id                              its id, to give to others
    meshnode expose web tcp://127.0.0.1:80 --allow any
    meshnode forward 8080 web                on another node: its port 8080 is that service
    meshnode doctor                          what this network is, when something does not work
    """
    if home == "":
        raise EMPTY_HOME
    ctx.obj = home


def run() -> int:
    """Run the command line, and return its exit code: 0 done, 1 an error, 2 wrong usage, 130 interrupted."""
    as_json = "--json" in sys.argv[1:]
    if isinstance(sys.stdout, TextIOWrapper):
        with suppress(OSError):
            sys.stdout.reconfigure(errors="backslashreplace")  # what the terminal's encoding lacks is escaped
    try:
        result = group(standalone_mode=False)
        return result if isinstance(result, int) else 0
    except MeshError as error:
        _tell(error, as_json)
    except click.ClickException as error:
        _show_usage(error, as_json)
        return error.exit_code
    except click.Abort:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
    except OSError as error:  # a full disk, a home that went away
        from meshnode.base.refusals import refused

        _tell(refused(error), as_json)
    except MemoryError:
        _tell(MeshError("there is no memory left", hint="end other programs, or raise the limit (ulimit -v)"), as_json)
    except RuntimeError as error:
        if str(error) != NO_THREAD:
            raise
        hint = "raise the limit of processes: ulimit -u, or that of the container (pids)"
        _tell(MeshError("no thread can be started", hint=hint), as_json)
    return 1


def _tell(error: MeshError, as_json: bool) -> None:
    """Print an error, on standard error where standard output takes no more: it is a file on a full disk, say."""
    try:
        fail(error, as_json)
    except OSError:
        with suppress(OSError):
            fail(error, False)


def _show_usage(error: click.ClickException, as_json: bool) -> None:
    hint = _usage_hint(error)
    if as_json:
        _tell(MeshError(error.format_message(), hint=hint or "see --help"), True)
        return
    shown = StringIO()
    error.show(file=shown)
    for line in shown.getvalue().splitlines():
        say(line, err=True)
    if hint:
        say(f"hint: {hint}", err=True)


def _usage_hint(error: click.ClickException) -> str:
    """Return what helps with an option that stands before the command and belongs behind it."""
    if isinstance(error, click.NoSuchOption) and error.ctx is not None and error.ctx.parent is None:
        return f"options but --home stand behind the command, as in: meshnode status {error.option_name}"
    return ""
