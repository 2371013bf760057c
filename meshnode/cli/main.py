"""Entry point: finds the subcommand's module only when it is asked for, so that ``--help`` stays quick."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from importlib import import_module

import click

from meshnode.cli.output import fail
from meshnode.errors import MeshError

COMMANDS = {
    "demo": ("meshnode.cli.demo", "Watch live streams survive moves, in a mesh of eight processes."),
    "doctor": ("meshnode.cli.doctor", "Say what this network is, and why a peer is reached as it is."),
    "expose": ("meshnode.cli.client", "Offer a local TCP service to other nodes."),
    "forget": ("meshnode.cli.shared", "Forget which node a name meant here."),
    "forward": ("meshnode.cli.client", "Listen here for a TCP service of another node."),
    "id": ("meshnode.cli.identity", "Print this home's id and overlay address."),
    "keygen": ("meshnode.cli.identity", "Make a key."),
    "peers": ("meshnode.cli.client", "List the live peers and the path in use."),
    "ping": ("meshnode.cli.client", "Reach a node by its key and time the way."),
    "pub": ("meshnode.cli.shared", "Publish a message to a topic."),
    "rebind": ("meshnode.cli.client", "Move the node's socket to another address."),
    "resolve": ("meshnode.cli.client", "Find where a node is, by its key."),
    "seed": ("meshnode.cli.run", "Run a node that others may begin with."),
    "services": ("meshnode.cli.shared", "List what the nodes of the mesh offer."),
    "status": ("meshnode.cli.client", "Show the running node."),
    "sub": ("meshnode.cli.shared", "Print a topic's messages as they come."),
    "unexpose": ("meshnode.cli.client", "Withdraw an exposed service."),
    "unforward": ("meshnode.cli.client", "Stop a forward."),
    "up": ("meshnode.cli.run", "Run a node in the foreground."),
    "watch": ("meshnode.cli.shared", "Show members and services as they change."),
}


class LazyGroup(click.Group):
    """Loads a command's module when it is used; the list above serves ``--help``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(COMMANDS[cmd_name][0])
        command = getattr(module, f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one is answered with those that are spelt like it. Raises UsageError."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            close = get_close_matches(args[0], COMMANDS, n=3, cutoff=0.5)
            hint = f" Did you mean {', '.join(close)}?" if close else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--home",
    default="~/.meshnode",
    show_default=True,
    envvar="MESHNODE_HOME",
    help="Where one node keeps its key, state and control socket.",
)
@click.version_option(package_name="meshnode")
@click.pass_context
def group(ctx: click.Context, home: str) -> None:
    """A userspace mesh: a program's address is its public key.

    \b
    meshnode up                              run a node here
    meshnode id                              its id, to give to others
    meshnode expose web tcp://127.0.0.1:80 --allow any
    meshnode forward 8080 web                on another node: its port 8080 is that service
    meshnode doctor                          what this network is, when something does not work
    """
    ctx.obj = home


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted."""
    as_json = "--json" in sys.argv[1:]
    try:
        result = group(standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except MeshError as error:
        fail(error, as_json)
        sys.exit(1)
    except click.ClickException as error:
        if as_json:
            fail(MeshError(error.format_message(), hint="see --help"), True)
        else:
            error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:  # a full disk, a home that went away
        fail(MeshError(str(error), hint="the system refused this; see the message"), as_json)
        sys.exit(1)
