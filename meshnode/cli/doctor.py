"""``doctor``: what this network is, and why a peer is reached as it is, in plain words."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from meshnode.cli.options import home_option, json_option
from meshnode.cli.output import fail
from meshnode.daemon.client import call
from meshnode.diagnosis.finding import Finding, Level
from meshnode.diagnosis.network import diagnose
from meshnode.diagnosis.peer import diagnose_peer
from meshnode.errors import MeshError, NotRunning

MARKS = {Level.OK: "ok", Level.NOTE: "note", Level.PROBLEM: "PROBLEM"}
COLOURS = {Level.OK: "green", Level.NOTE: None, Level.PROBLEM: "red"}
NAME_TIMEOUT_S = 3.0
UNDER = ("tried", "history")  # topics whose findings stand below the one before


@click.command("doctor")
@click.argument("id", required=False)
@home_option
@json_option
def doctor_command(id: str | None, home: Path, as_json: bool) -> int:
    """Say what this network is: NAT, UDP, IPv6, relays, multicast, clock, seeds. With an ID: why that peer is
    reached directly, through a relay or not at all, and what was tried.

    Each line is ok, a note, or a PROBLEM with what to do next. Exit code 1 only when no node runs here.

    \b
    Example: meshnode doctor
             meshnode doctor ID --json
    """
    absent: MeshError | None = None
    try:
        snapshot = _ask(home, id, quiet=as_json)
    except NotRunning as error:
        absent, snapshot = error, _without_node(home)
    nat = dict(snapshot.get("status", {}).get("nat") or {})
    peer = snapshot.get("peer")
    findings = diagnose(snapshot)
    about = diagnose_peer(peer, nat) if peer is not None else []
    if as_json:
        found = [finding.to_json() for finding in findings + about]
        error_ = absent.to_json() if absent is not None else {}
        click.echo(json.dumps({**error_, "findings": found, "nat": nat, "peer": peer}))
    else:
        _show(findings)
        if about:
            click.echo()
            _show(about)
        if absent is not None:
            fail(absent, as_json=False)
    return 0 if absent is None else 1


def _ask(home: Path, id: str | None, *, quiet: bool) -> dict[str, Any]:
    arguments = {} if id is None else {"id": id}
    for result in call(home, "doctor", **arguments):
        if "snapshot" in result:
            snapshot: dict[str, Any] = result["snapshot"]
            return snapshot
        if not quiet and sys.stderr.isatty():
            click.echo(f"{result['progress']} ...", err=True)
    raise MeshError("the node said nothing", hint="is it another version? restart it")


def _without_node(home: Path) -> dict[str, Any]:
    """What can be seen without a node: this host's addresses, and whether the seeds' names resolve. ConfigError."""
    from meshnode.base.limits import MAX_DOCTOR_SEEDS
    from meshnode.config import Config, parse_seed
    from meshnode.runtime.interfaces import local_networks

    seeds = [parse_seed(text) for text in Config.load(home).seeds[:MAX_DOCTOR_SEEDS]]
    names = _look_up(list(dict.fromkeys(seed.host for seed in seeds)))
    return {
        "running": False,
        "home": str(home),
        "addresses": [list(network) for network in local_networks(loopback=True)],
        "seeds": [{"id": str(seed.id), "host": seed.host, "port": seed.port, **names[seed.host]} for seed in seeds],
        "peer": None,
    }


def _look_up(hosts: list[str]) -> dict[str, dict[str, Any]]:
    """Ask the name server for all at once; a dead one, which may be what is wrong, holds nobody up."""
    import socket
    import threading

    late = {"addresses": [], "error": "the name server does not answer"}
    found: dict[str, dict[str, Any]] = {}

    def ask(host: str) -> None:
        try:
            answers = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
            found[host] = {"addresses": list(dict.fromkeys(str(item[4][0]) for item in answers)), "error": ""}
        except (OSError, UnicodeError) as error:
            found[host] = {"addresses": [], "error": getattr(error, "strerror", None) or str(error)}

    threads = [threading.Thread(target=ask, args=(host,), daemon=True) for host in hosts]
    until = time.monotonic() + NAME_TIMEOUT_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return {host: found.get(host, late) for host in hosts}


def _show(findings: list[Finding]) -> None:
    """One line a finding: level, topic, sentence; what to do next below it."""
    width = max((len(finding.topic) for finding in findings), default=0)
    before = ""
    for finding in findings:
        mark = click.style(f"{MARKS[finding.level]:7}", fg=COLOURS[finding.level], bold=finding.level is Level.PROBLEM)
        quiet = finding.topic in UNDER and finding.topic == before
        topic = "" if quiet else finding.topic
        click.echo(f"{mark}  {topic:{width}}  {finding.text}")
        if finding.hint:
            arrow = "do" if finding.level is Level.PROBLEM else "hint"
            click.echo(f"{'':7}  {'':{width}}  {arrow}: {finding.hint}")
        before = finding.topic
