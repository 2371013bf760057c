"""Commands about what the mesh has in common: services, members, names, topics."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import cast

import click

from meshnode.cli.options import home_option, json_option
from meshnode.cli.output import emit, visible
from meshnode.daemon.client import call
from meshnode.errors import ConfigError

MAX_TEXT = 3_072
MAX_BATCH, MAX_BATCH_BYTES = 64, 32_768  # messages in one request, which has at most 64 kB


@click.command("services")
@click.argument("name", required=False)
@home_option
@json_option
def services_command(name: str | None, home: Path, as_json: bool) -> int:
    """List what the nodes of the mesh offer, one instance a line; exit code 1 when nobody offers NAME.

    A service is listed when it is announced: one that somebody is allowed to use, unless it was exposed with
    --no-announce. The state is up, failing or suspect, or what this node has lived through with it (silent, failed,
    refused).

    \b
    Example: meshnode services db --json
    """
    found = 0
    for item in call(home, "services", name=name):
        found += 1
        rtt = f"{item['rtt_ms']:.1f} ms" if item["rtt_ms"] is not None else "-"
        meta = " ".join(f"{key}={text}" for key, text in item["meta"].items())
        who = f"{item['id'][:12]} {item['name']}".rstrip()
        text = f"{item['service']:16} {item['state']:8} {who:24} load {item['load']:3}  {rtt:>9}  {meta}".rstrip()
        emit(item, as_json, text)
    if not found and not as_json:
        click.echo("nobody offers that" if name else "no service is announced; `meshnode expose` offers one")
    return 0 if found or name is None else 1


@click.command("watch")
@home_option
@json_option
def watch_command(home: Path, as_json: bool) -> None:
    """Show members and services, then every change as it happens, one a line, until Ctrl-C.

    \b
    Example: meshnode watch --json | jq 'select(.event == "service")'
    """
    for item in call(home, "watch"):
        who = f"{item['id'][:12]} {item.get('name', '')}".rstrip()
        if item["event"] == "member":
            text = f"member   {who:24} {item['status']}"
        elif item["event"] == "service":
            text = f"service  {who:24} {item['service']} {item['change']}"
            text += "" if item["state"] in ("up", "down") else f" ({item['state']})"
        else:
            text = f"{item['event']}  {who} {item['detail']}"
        emit(item, as_json, text)
        sys.stdout.flush()


@click.command("pub")
@click.argument("topic")
@click.argument("text", required=False)
@home_option
@json_option
def pub_command(topic: str, text: str | None, home: Path, as_json: bool) -> None:
    """Publish TEXT to all who have joined TOPIC; without TEXT (or with -) each line of the input is a message.

    A message has at most 3,072 bytes, is signed by this node, and comes at most once: nobody confirms it.

    \b
    Example: meshnode pub news 'the build is green'
    """
    for batch in _input() if text is None or text == "-" else iter([[text.encode()]]):
        messages = [base64.b64encode(_measured(data)).decode() for data in batch]
        for result in call(home, "pub", topic=topic, messages=messages, encoded=True):
            emit(result, as_json, f"{topic} {result['seq']} to {result['members']} other members")
            sys.stdout.flush()


def _input() -> Iterator[list[bytes]]:
    """The lines of the input, as many at once as are there already."""
    source, rest = cast(BufferedReader, sys.stdin.buffer), b""
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
    """Join TOPIC and print its messages as they come, one a line, until Ctrl-C.

    Who reads too slowly loses the oldest messages; "lost" counts them, and those that never came.

    \b
    Example: meshnode sub news --replay 10
    """
    for item in call(home, "sub", topic=topic, replay=replay, count=count):
        if "joined" in item:
            click.echo(f"joined {topic}: {item['members']} other members; Ctrl-C ends", err=True)
            continue
        text = visible(item["text"]) if "text" in item else item["base64"]
        emit(item, as_json, f"{item['sender'][:12]}  {text}")
        sys.stdout.flush()


@click.command("forget")
@click.argument("name")
@home_option
@json_option
def forget_command(name: str, home: Path, as_json: bool) -> None:
    """Forget which node a name meant here; its next use asks the mesh anew.

    The first use of a node's name pins its id, as ssh does with host keys. When another node holds the name now and
    that is right, forget the old meaning.

    \b
    Example: meshnode forget laptop
    """
    for result in call(home, "forget", name=name):
        emit(result, as_json, f"{name} means nothing here until it is used again")
