"""``completion``: the shell completes commands and options."""

from __future__ import annotations

import click

from meshnode.cli.output import say


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print the script by which a shell completes commands and options.

    \b
    Example: meshnode completion bash >> ~/.bashrc
             meshnode completion zsh >> ~/.zshrc
             meshnode completion fish > ~/.config/fish/completions/meshnode.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    for line in found(ctx.find_root().command, {}, "meshnode", "_MESHNODE_COMPLETE").source().split("\n"):
        say(line)
