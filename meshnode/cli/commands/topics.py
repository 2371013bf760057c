"""Commands about topics."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from meshnode.cli.ask import ask
from meshnode.cli.options import home_option, json_option
from meshnode.cli.output import emit, say
from meshnode.errors import ConfigError

if TYPE_CHECKING:
    from io import BufferedReader

MAX_TEXT = 3_072
MAX_BATCH, MAX_BATCH_BYTES = 64, 32_768  # messages in one request, which has at most 64 kB


@click.command("pub")
@click.argument("topic")
@click.argument("text", required=False)
@home_option
@json_option
def pub_command(topic: str, text: str | None, home: Path, as_json: bool) -> None:
    """Publish a message to a topic.

    All nodes that have joined TOPIC get TEXT; without TEXT (or with -) each line of the input is a message. A message
    has at most 3,072 bytes, is signed by this node, and comes at most once: there is no confirmation.

    JSON: {"topic", "seq", "members", "links"}

    \b
    Example: meshnode pub news 'the build is green'
    """
    import base64

    from meshnode.daemon.requests.topics import Pub

    for batch in _input() if text is None or text == "-" else iter([[os.fsencode(text)]]):
        messages = tuple(base64.b64encode(_measured(data)).decode() for data in batch)
        for result in ask(home, Pub(topic, messages, encoded=True)):
            emit(result, as_json, f"{topic} {result['seq']} to {result['members']} other members")
            sys.stdout.flush()


def _input() -> Iterator[list[bytes]]:
    """Yield the lines of the input, as many at once as are there already."""
    source, rest = cast("BufferedReader", sys.stdin.buffer), b""
    while data := source.read1(65_536):
        *lines, rest = (rest + data).split(b"\n")
        yield from _batches(lines)
        _measured(rest)
    if rest:
        yield [rest.removesuffix(b"\r")]


def _batches(lines: list[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for line in lines:
        message = line.removesuffix(b"\r")
        if len(batch) == MAX_BATCH or sum(map(len, batch)) + len(message) > MAX_BATCH_BYTES:
            yield batch
            batch = []
        batch.append(message)
    if batch:
        yield batch


def _measured(data: bytes) -> bytes:
    if len(data) > MAX_TEXT:
        raise ConfigError(f"a message has at most {MAX_TEXT} bytes, not {len(data)}", hint="publish it in parts")
    return data


@click.command("sub")
@click.argument("topic")
@click.option("-c", "--count", type=click.IntRange(1), help="End after so many messages.")
@click.option("--replay", default=0, type=click.IntRange(0, 64), help="Begin with up to so many of the latest.")
@home_option
@json_option
def sub_command(topic: str, count: int | None, replay: int, home: Path, as_json: bool) -> None:
    """Print a topic's messages as they come, until Ctrl-C.

    A reader that is too slow loses the oldest messages; "lost" counts them, and those that never came.

    JSON: {"topic", "sender", "seq", "text" or "base64", "lost"}

    \b
    Example: meshnode sub news --replay 10
    """
    from meshnode.daemon.requests.topics import Sub

    for item in ask(home, Sub(topic, replay, count)):
        if "joined" in item:
            say(f"joined {topic}: {item['members']} other members; Ctrl-C ends", err=True)
            continue
        text = item["text"] if "text" in item else item["base64"]
        emit(item, as_json, f"{item['sender'][:12]}  {text}")
        sys.stdout.flush()
