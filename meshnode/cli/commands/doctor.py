"""``doctor``: what this network is, and why a peer is reached by its present path, in plain words."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshnode.cli.ask import ask
from meshnode.cli.options import home_option, json_option, warn_of_variables
from meshnode.cli.output import emit, fail, say
from meshnode.errors import MeshError, NotRunning

if TYPE_CHECKING:
    from meshnode.diagnosis.finding import Snapshot


@click.command("doctor")
@click.argument("id", required=False)
@home_option
@json_option
def doctor_command(id: str | None, home: Path, as_json: bool) -> int:
    """Say what this network is, and why a peer is reached the way it is.

    Topics are NAT, UDP, IPv6, relays, multicast, clock, seeds, services and forwards; with an ID also that peer:
    reached directly, through a relay or not at all, and what was tried. Each line is ok, a note, or a PROBLEM with
    what to do next. Exit code 1 only when no node runs here.

    JSON: {"findings": [{"topic", "level", "text", "hint"}], "nat", "peer"}

    \b
    Example: meshnode doctor
             meshnode doctor ID --json
    """
    from meshnode.cli.doctor_view import show
    from meshnode.diagnosis.network import diagnose
    from meshnode.diagnosis.peer import diagnose_peer
    from meshnode.diagnosis.services import diagnose_services

    absent: MeshError | None = None
    try:
        snapshot = _ask(home, id, quiet=as_json)
    except NotRunning as error:
        absent, snapshot = error, _look_around(home)
    nat = dict(snapshot.get("status", {}).get("nat") or {})
    peer = snapshot.get("peer")
    findings = diagnose(snapshot) + diagnose_services(snapshot)
    about = diagnose_peer(peer, nat) if peer is not None else []
    if as_json:
        found = [finding.to_json() for finding in findings + about]
        error_ = absent.to_json() if absent is not None else {}
        emit({**error_, "findings": found, "nat": nat, "peer": peer}, True)
    else:
        show(findings)
        if about:
            say()
            show(about)
        if absent is not None:
            fail(absent, as_json=False)
    return 0 if absent is None else 1


def _look_around(home: Path) -> Snapshot:
    from meshnode.cli.offline import snapshot_without_node

    return snapshot_without_node(home)


def _ask(home: Path, id: str | None, *, quiet: bool) -> Snapshot:
    from meshnode.daemon.requests.node import Doctor

    for result in ask(home, Doctor(id)):
        if "snapshot" in result:
            warn_of_variables()
            snapshot: Snapshot = result["snapshot"]
            return snapshot
        if not quiet and sys.stderr.isatty():
            say(f"{result['progress']} ...", err=True)
    raise MeshError("the node said nothing", hint="is it another version? restart it")
