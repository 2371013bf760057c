"""``demo``: a live TCP connection that survives every kind of move."""

from __future__ import annotations

import click

from meshnode.cli.options import json_option
from meshnode.cli.output import emit


@click.command("demo")
@click.option("--rounds", default=4, show_default=True, type=click.IntRange(1, 50), help="Times each kind of move.")
@click.option("--netns", is_flag=True, help="Each node in a network namespace, real address changes; needs root.")
@json_option
def demo_command(rounds: int, netns: bool, as_json: bool) -> int:
    """Watch live streams survive moves, in a mesh of eight processes.

    Both ends of a TCP connection move; without --netns the nodes live on loopback addresses and move by rebinding. Exit
    code 1 when a byte is lost.

    JSON: {"nodes", "moves": [{..., "gap_ms", "lost"}]}

    \b
    Example: meshnode demo --json
    """
    from meshnode.demo.play import play, to_json
    from meshnode.demo.show import make_show

    with make_show(as_json=as_json) as show:
        moves = play(rounds, show, netns)
    if as_json:
        emit(to_json(moves), True)
    else:
        show.result(moves)
    return 1 if any(move.lost for move in moves) else 0
