"""``mesh create``, ``invite``, ``join``, ``grant``: a private mesh and its members, without a running node."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshnode.cli.options import F, home_option, json_option
from meshnode.cli.output import emit, say
from meshnode.errors import ConfigError, NotRunning

if TYPE_CHECKING:
    from meshnode.identity.keys import Identity
    from meshnode.identity.node_id import NodeId
    from meshnode.trust.chain import Standing
    from meshnode.trust.ticket import Ticket

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "": 1}
MAX_SPAN_S = 100 * 365 * 86_400
MAX_INVITED_SEEDS = 4
FILE = click.Path(path_type=Path)


class Span(click.ParamType[float]):
    """A length of time, as ``90s``, ``30m``, ``1h`` or ``7d``."""

    name = "span"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value).strip())
        span = float(found[1]) * UNITS[found[2]] if found else 0.0
        if not 0 < span <= MAX_SPAN_S:
            self.fail(f"{value!r} is no length of time; write 90s, 30m, 1h or 7d", param, ctx)
        return span


def granting(command: F) -> F:
    """Add the options that say what is granted."""
    options = [
        click.option("--role", "roles", multiple=True, metavar="R", help="A role that is given; repeatable."),
        click.option(
            "--service",
            "services",
            multiple=True,
            metavar="NAME",
            help="Only these services, web* for all that begin so; repeatable  [default: all]",
        ),
        click.option(
            "--lifetime", type=Span(), default="90d", show_default=True, help="How long a grant holds; it is renewed."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def node_of(home: Path, *, make: bool) -> Identity:
    """Return the node's key, as ``up`` finds it; made where ``make`` says so.

    Raises KeyFileError, ConfigError.
    """
    from meshnode.config import key_of_environment
    from meshnode.identity.keyfile import given_key, load, load_or_create

    text = key_of_environment(os.environ)
    if text is not None:
        return given_key(text)
    passphrase = os.environ.get("MESHNODE_PASSPHRASE")
    return load_or_create(home / "key", passphrase) if make else load(home / "key", passphrase)


def _warn_of_another(home: Path, authority: NodeId) -> None:
    """Warn when ``up`` would not join the mesh of the home, for a setting names another one."""
    from meshnode.config import Config

    if Config.load(home).authority != str(authority):
        say("warning: meshnode.toml or MESHNODE_MESH names another mesh, which `meshnode up` joins instead", err=True)


@click.group("mesh")
def mesh_group() -> None:
    """Make a mesh of one's own, whose authority says which node may do what.

    \b
    Example: meshnode mesh create field
    """


@mesh_group.command("create")
@click.argument("name")
@home_option
@json_option
def create_command(name: str, home: Path, as_json: bool) -> None:
    """Make a private mesh here: its secret, and the key of its authority.

    NAME is for people. Afterwards `meshnode up` in this home joins that mesh, with the role admin. The authority's key
    is in HOME/authority.key, apart from the node's, and encrypted: a terminal is asked for a passphrase, or it is
    MESHNODE_AUTHORITY_PASSPHRASE. Keep a backup of it. It may be moved elsewhere: only `invite`, `grant`, `revoke`,
    `mesh rotate` and `policy sign` need it.

    JSON: {"mesh", "authority", "id"}

    \b
    Example: meshnode mesh create field
    """
    from time import time

    from meshnode.cli.authority import new_passphrase
    from meshnode.runtime.files import HomeLock
    from meshnode.trust.operator import create_mesh

    lock = HomeLock(home)
    try:
        node, secret = node_of(home, make=True), new_passphrase()
        mesh = create_mesh(home, name, node, secret, time(), os.urandom)
    finally:
        lock.release()
    if secret is None:
        say("warning: the authority's key is not encrypted: a copy of it owns the mesh", err=True)
        say("hint: set MESHNODE_AUTHORITY_PASSPHRASE and make the mesh in another home, or guard this one", err=True)
    _warn_of_another(home, mesh.authority)
    value = {"mesh": mesh.name, "authority": str(mesh.authority), "id": str(node.id)}
    emit(
        value,
        as_json,
        f"mesh {mesh.name}",
        f"  authority {mesh.authority}, its key in {home / 'authority.key'}",
        "  meshnode up            run the node of this home",
        "  meshnode invite        a ticket for another one",
    )


@mesh_group.command("rotate")
@click.option(
    "--delay", type=Span(), default="10m", show_default=True, help="Until nodes seal with the new secret, 90d at most."
)
@click.option(
    "--overlap", type=Span(), default="7d", show_default=True, help="How long the old one is taken then, 90d at most."
)
@home_option
@json_option
def rotate_command(delay: float, overlap: float, home: Path, as_json: bool) -> None:
    """Change the mesh's secret, while its nodes run.

    The node of this home tells all that are connected and have a grant, and they tell others; no connection is lost. A
    node that is away for all of the delay and the overlap needs a new ticket then, and so do tickets from before.

    JSON: {"mesh", "begins", "ends", "told"}

    \b
    Example: meshnode mesh rotate --overlap 7d
    """
    from base64 import b64encode
    from time import time

    from meshnode.cli.ask import ask_one
    from meshnode.cli.authority import authority_secrets
    from meshnode.daemon.requests.mesh import TakeRotation
    from meshnode.trust.home_mesh import load_authority
    from meshnode.trust.operator import keep_rotation, mesh_of, rotate_mesh

    mesh, wall = mesh_of(home), time()
    authority = load_authority(home, *authority_secrets(home))
    if authority is None:
        raise ConfigError("the key of the mesh's authority is not here", hint="run this where the mesh was made")
    rotation = rotate_mesh(home, mesh, authority, delay_s=delay, overlap_s=overlap, wall=wall, entropy=os.urandom)
    try:
        told = bool(ask_one(home, TakeRotation(b64encode(rotation.encoded).decode()), timeout=10.0)["taken"])
        if not told:
            raise ConfigError("the node of this home has another secret, of later", hint="restart it, and try again")
    except NotRunning:
        keep_rotation(home, rotation, wall)
        told = False
    value = {"mesh": mesh.name, "begins": rotation.begins / 1000, "ends": rotation.ends / 1000, "told": told}
    emit(value, as_json, f"the secret of {mesh.name} changes", *([] if told else ["  meshnode up   tells the others"]))


def _seeds(home: Path, given: tuple[str, ...]) -> tuple[str, ...]:
    """Return what newcomers begin with: as given, this home's running node, and the seeds of its settings."""
    from meshnode.cli.ask import ask_one
    from meshnode.config import Config, parse_seed
    from meshnode.daemon.requests.node import Status
    from meshnode.trust.ticket import MAX_SEED_TEXT

    for text in given:
        parse_seed(text)
    found = [text.strip() for text in given]
    try:
        status = ask_one(home, Status(), timeout=5.0)
        found += [f"{status['id']}@{endpoint}" for endpoint in status["endpoints"][:2] if "%" not in endpoint]
    except NotRunning:
        pass
    found += [text for seed in Config.load(home).seeds if len(text := seed.strip()) <= MAX_SEED_TEXT]
    return tuple(dict.fromkeys(found))[:MAX_INVITED_SEEDS]


@click.command("invite")
@granting
@click.option("--expires", type=Span(), default="1h", show_default=True, help="How long the ticket may be used.")
@click.option("--uses", type=int, default=1, show_default=True, help="For how many nodes; 0 for any number.")
@click.option("--seed", "seeds", multiple=True, metavar="ID@HOST:PORT", help="A node to begin with; repeatable.")
@click.option("--out", type=FILE, metavar="FILE", help="Write the ticket to FILE (mode 0600) instead.")
@click.option("--qr", is_flag=True, help="Show it as a QR code too (pip install 'meshnode[qr]').")
@home_option
@json_option
def invite_command(
    roles: tuple[str, ...],
    services: tuple[str, ...],
    lifetime: float,
    expires: float,
    uses: int,
    seeds: tuple[str, ...],
    out: Path | None,
    qr: bool,
    home: Path,
    as_json: bool,
) -> None:
    """Make a ticket with which another machine joins this home's mesh.

    The ticket is a secret: it holds the mesh's key and the right to join, with these roles. Run it where the mesh was
    made; the node that runs here is in the ticket as a seed. Members count: nodes over --uses are refused.

    JSON: {"ticket", "grant"}, with --out {"file", "grant"}; `revoke GRANT` ends the ticket with all that it let in.

    \b
    Example: meshnode invite --role web --expires 1h
             meshnode invite --role web --uses 20 --out ticket
    """
    from time import time

    from meshnode.cli.authority import authority_secrets
    from meshnode.trust.grant import grant_id
    from meshnode.trust.names import checked_roles, checked_services
    from meshnode.trust.operator import invite, issuer_of, secret_of
    from meshnode.trust.ticket import format_ticket

    wall = time()
    node = node_of(home, make=False) if (home / "key").exists() else None
    mesh, issuer = issuer_of(home, node, *authority_secrets(home))
    ticket = invite(
        secret_of(home, mesh, wall),
        issuer,
        roles=checked_roles(roles),
        services=checked_services(services),
        seeds=_seeds(home, seeds),
        ticket_s=expires,
        lifetime_s=lifetime,
        uses=uses,
        wall=wall,
        entropy=os.urandom,
    )
    text, named = format_ticket(ticket), grant_id(ticket.chain[-1])
    if not ticket.seeds:
        say("warning: no node is in the ticket to begin with; on another network it finds none", err=True)
        say("hint: run `meshnode up` here first, or name one with --seed ID@HOST:PORT", err=True)
    if qr:
        show_qr(text)
    if out is not None:
        write_new(out, text.encode() + b"\n")
        emit({"file": str(out), "grant": named}, as_json, str(out), f"  there: meshnode join @{out.name}")
        return
    emit({"ticket": text, "grant": named}, as_json, text)


def write_new(path: Path, data: bytes) -> None:
    from meshnode.base.files import create_secret
    from meshnode.base.refusals import refusal

    try:
        create_secret(path, data)
    except FileExistsError as error:
        raise ConfigError(f"{path} exists already", hint="name another file, or remove it") from error
    except OSError as error:
        reason, hint = refusal(error, path)
        raise ConfigError(f"cannot write {path}: {reason}", hint=hint) from error


def show_qr(text: str) -> None:
    """Print a text as a QR code on stderr.

    Raises ConfigError: it cannot be made.
    """
    try:
        import segno
    except ImportError as error:
        raise ConfigError("QR codes need segno", hint="pip install 'meshnode[qr]'") from error
    try:
        code = segno.make_qr(text.upper(), error="l", boost_error=False)
    except segno.DataOverflowError as error:
        raise ConfigError(
            "this ticket is too long for a QR code", hint="a shorter chain or fewer --seed; or --out FILE"
        ) from error
    code.terminal(out=sys.stderr, compact=True)


def _ticket(text: str) -> Ticket:
    """Return the ticket in an argument, in a file (@FILE) or on stdin (-). Raises ConfigError."""
    from meshnode.base.files import read_given, without_tilde
    from meshnode.base.limits import MAX_TICKET
    from meshnode.base.refusals import refusal
    from meshnode.trust.ticket import parse_ticket

    if text == "-":
        text = sys.stdin.buffer.read(2 * MAX_TICKET).decode("ascii", "replace")
    elif text.startswith("@"):
        path = without_tilde(text[1:])
        try:
            text = read_given(path, 2 * MAX_TICKET)[0].decode("ascii", "replace")
        except OSError as error:
            reason, hint = refusal(error, path)
            raise ConfigError(f"cannot read the ticket in {path}: {reason}", hint=hint) from error
    return parse_ticket(text)


@click.command("join")
@click.argument("ticket", metavar="TICKET|@FILE|-")
@home_option
@json_option
def join_command(ticket: str, home: Path, as_json: bool) -> None:
    """Join a private mesh with a ticket, before `meshnode up`.

    It works offline: the ticket makes a grant for this home's node, whose key is made if there is none. All users of a
    host see the arguments of a command: where there are others, write the ticket to a file and say @FILE, or - for
    stdin.

    JSON: {"mesh", "id", "roles", "expires"}

    \b
    Example: meshnode join @ticket
             meshnode up
    """
    from time import time

    from meshnode.runtime.files import HomeLock
    from meshnode.trust.operator import join

    found = _ticket(ticket)
    lock = HomeLock(home)
    try:
        node = node_of(home, make=True)
        standing = join(home, found, node, time(), os.urandom)
    finally:
        lock.release()
    _warn_of_another(home, found.authority)
    roles = sorted(standing.roles)
    value = {"mesh": found.mesh, "id": str(node.id), "roles": roles, "expires": standing.expires / 1000}
    emit(value, as_json, f"in the mesh {found.mesh} as {node.id}", *told_of(standing), "  meshnode up")


def told_of(standing: Standing) -> list[str]:
    """Return what a grant gives, for people."""
    from datetime import datetime

    try:
        until = datetime.fromtimestamp(standing.expires / 1000).astimezone().isoformat(" ", "minutes")
    except (ValueError, OverflowError, OSError):  # an authority may date a grant so that no calendar has the day
        until = "the end of the calendar"
    lines = [f"  roles     {', '.join(sorted(standing.roles)) or 'none'}"]
    if standing.services is not None:
        lines.append(f"  services  {', '.join(standing.services) or 'none'}")
    return [*lines, f"  until     {until}"]
