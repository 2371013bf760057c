"""``revoke`` and ``apply``: keys and grants that count no longer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from meshnode.cli.ask import ask, ask_one
from meshnode.cli.options import home_option, json_option
from meshnode.cli.output import emit, say
from meshnode.errors import ConfigError, NotRunning

FILE = click.Path(path_type=Path)


@click.command("revoke")
@click.argument("target", metavar="[ID]", required=False)
@click.option("--reason", default="", metavar="TEXT", help="Why, for people; every member may read it.")
@click.option("--out", type=FILE, metavar="FILE", help="Write the statement here instead; any member applies it.")
@click.option("--list", "as_list", is_flag=True, help="List what the running node knows to be revoked.")
@home_option
@json_option
def revoke_command(target: str | None, reason: str, out: Path | None, as_list: bool, home: Path, as_json: bool) -> None:
    """Revoke a key, or one grant: for ever, at every node, within a second.

    ID is a node's id, or that of a grant (16 hexadecimal digits). With the authority's key, that of this home or in
    MESHNODE_AUTHORITY_KEY, all can be revoked; a delegate revokes what its own grant made, and any node itself. The
    node that runs here hands it on; connections of what is revoked end at once.

    JSON: {"id", "kind", "issuer", "time", "reason"}, when it is spread "everywhere" and "formers" too, with --out
    "file"; with --list one a line

    \b
    Example: meshnode revoke ID --reason "stolen laptop"
             meshnode revoke ID --out revoked.statement
             meshnode revoke --list
    """
    if as_list:
        _list(home, as_json)
        return
    if target is None:
        raise ConfigError("what is to be revoked?", hint="`meshnode revoke ID`, or --list for what is")
    from time import time

    from meshnode.base.files import write_given
    from meshnode.cli.authority import authority_secrets
    from meshnode.cli.commands.trust import node_of
    from meshnode.daemon.requests.trust import StatementApply
    from meshnode.trust.operator import revoke

    node = node_of(home, make=False) if (home / "key").exists() else None
    made = revoke(home, target, node, *authority_secrets(home), reason, time())
    if out is not None:
        write_given(out, made.encoded)
        emit({**made.to_json(), "file": str(out)}, as_json, str(out), f"  any member spreads it: meshnode apply {out}")
        return
    try:
        found = ask_one(home, StatementApply(made.encoded.hex()))
    except NotRunning as error:
        hint = f"start it, or make a statement for another member: meshnode revoke {target} --out FILE"
        raise NotRunning(error.message, hint=hint) from error
    _tell(found, as_json)


def _tell(found: dict[str, Any], as_json: bool) -> None:
    """Print what a statement that was taken says, and where it counts."""
    where = "and every node hears of it" if found["everywhere"] else "where a grant of this delegate let it in"
    formers = [f"  it has replaced {key}: revoke that too" for key in found["formers"]]
    emit(found, as_json, f"the {found['kind']} {found['id']} is revoked, {where}", *formers)


def _list(home: Path, as_json: bool) -> None:
    from datetime import datetime

    from meshnode.daemon.requests.trust import RevocationList

    count = 0
    for found in ask(home, RevocationList()):
        count += 1
        at = datetime.fromtimestamp(found["time"]).astimezone().isoformat(" ", "seconds")
        emit(found, as_json, f"{found['kind']:5} {found['id']}", f"      {at}  {found['reason']}".rstrip())
    if not count and not as_json:
        say("nothing is revoked")


@click.command("apply")
@click.argument("file", type=FILE)
@home_option
@json_option
def apply_command(file: Path, home: Path, as_json: bool) -> None:
    """Hand a revocation in a file to the running node, which spreads it.

    It proves itself, so any member may do so.

    JSON: {"id", "kind", "issuer", "time", "reason", "everywhere", "formers"}

    \b
    Example: meshnode apply revoked.statement
    """
    from meshnode.base.files import read_given
    from meshnode.base.limits import MAX_REVOCATION
    from meshnode.daemon.requests.trust import StatementApply

    data, _ = read_given(file, MAX_REVOCATION + 1)
    _tell(ask_one(home, StatementApply(data.hex())), as_json)
