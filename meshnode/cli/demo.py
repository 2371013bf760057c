"""``demo``: watch a live TCP connection survive every kind of move."""

from __future__ import annotations

import asyncio
import json

import click

from meshnode.cli.options import json_option
from meshnode.demo.play import play, to_json
from meshnode.demo.show import make_show


@click.command("demo")
@click.option("--rounds", default=4, show_default=True, type=click.IntRange(1, 50), help="Times each kind of move.")
@click.option("--netns", is_flag=True, help="Each node in a network namespace, real address changes; needs root.")
@json_option
def demo_command(rounds: int, netns: bool, as_json: bool) -> int:
    """Start eight nodes and move both ends of a live TCP connection. Exit code 1 when a byte is lost.

    Without --netns the nodes live on loopback addresses and move by rebinding.

    \b
    Example: meshnode demo --json
    """
    try:
        with make_show(as_json=as_json) as show:
            moves = asyncio.run(play(rounds, show, netns))
    except asyncio.CancelledError as error:
        raise click.Abort from error
    if as_json:
        click.echo(json.dumps(to_json(moves)))
    else:
        show.result(moves)
    return 1 if any(move.lost for move in moves) else 0
