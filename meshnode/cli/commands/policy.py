"""``policy``: rules about which node may reach what."""

from __future__ import annotations

from pathlib import Path

import click

from meshnode.cli.ask import ask_one
from meshnode.cli.options import home_option, json_option
from meshnode.cli.output import emit, say
from meshnode.errors import ConfigError, NotRunning

ACTS = ("service", "publish", "subscribe", "name", "relay", "connect")
ABOUT_NODES = ("relay", "connect")  # acts that are about no service, topic or name
FILE = click.Path(path_type=Path)


def _read(path: Path) -> bytes:
    from meshnode.base.files import read_given
    from meshnode.base.limits import MAX_POLICY

    return read_given(path, MAX_POLICY + 1)[0]


def _rules(count: object) -> str:
    return "1 rule" if count == 1 else f"{count} rules"


@click.group("policy")
def policy_group() -> None:
    """Say which node may reach what: check, explain, test and set rules.

    Rules are a TOML file; without one, only the allow lists decide (`expose --allow`).

    \b
    Example: meshnode policy check policy.toml
             meshnode policy set policy.toml
             meshnode policy explain laptop self web
    """


@policy_group.command("check")
@click.argument("file", type=FILE)
@home_option
@json_option
def check_command(file: Path, home: Path, as_json: bool) -> None:
    """Read a policy and say what is wrong with it, without a node.

    Exit code 1 when something is; the error names the rule and its line.

    JSON: {"version", "mode", "reasons", "rules", "governed", "warnings"}

    \b
    Example: meshnode policy check policy.toml
    """
    from meshnode.trust.policy import parse_policy, warnings

    policy = parse_policy(_read(file), str(file))
    found, told = policy.to_json(), warnings(policy)
    governed = ", ".join(sorted(act.value for act in policy.governed))
    line = f"{_rules(found['rules'])}, version {policy.version}, {found['mode']}: {governed}"
    emit({**found, "warnings": told}, as_json, line, *(f"warning: {text}" for text in told))


@policy_group.command("explain")
@click.argument("caller", metavar="FROM")
@click.argument("target", metavar="TO")
@click.argument("what", metavar="[SERVICE]", default="")
@click.option("--act", type=click.Choice(ACTS), default="service", show_default=True, help="What SERVICE is.")
@click.option("--file", type=FILE, help="Ask this policy instead of the running node.")
@home_option
@json_option
def explain_command(
    caller: str, target: str, what: str, act: str, file: Path | None, home: Path, as_json: bool
) -> None:
    """Say whether FROM may reach SERVICE of TO, by which rule and grant, or why not.

    FROM and TO are ids or names, `self`, or what is known of a node: `role:dev`, `name:laptop`, joined by commas. The
    running node decides as it does at its door; its own allow lists count where TO is itself. Only `--act relay` and
    `--act connect` are about no SERVICE.

    JSON: {"allowed", "rule", "grant", "why"}

    \b
    Example: meshnode policy explain laptop self web
             meshnode policy explain role:dev role:db postgres --file policy.toml
    """
    if not what and act not in ABOUT_NODES:
        raise click.UsageError("Missing argument 'SERVICE': what FROM wants of TO.")
    if file is None:
        from meshnode.daemon.requests.policy import PolicyExplain

        found = ask_one(home, PolicyExplain(caller, target, what, act))
    else:
        from meshnode.trust.decision import decide
        from meshnode.trust.expectations import as_caller
        from meshnode.trust.policy import Act, parse_policy

        one, other = (as_caller([part.strip() for part in text.split(",")]) for text in (caller, target))
        found = decide(parse_policy(_read(file), str(file)), one, other, what, Act(act)).to_json()
    grant = f" (grant {found['grant']})" if found["grant"] else ""
    emit(found, as_json, f"{'allowed' if found['allowed'] else 'refused'}: {found['why']}{grant}")


@policy_group.command("test")
@click.argument("file", type=FILE)
@click.option("--policy", "policy_file", type=FILE, help="The policy  [default: policy.toml beside FILE]")
@home_option
@json_option
def test_command(file: Path, policy_file: Path | None, home: Path, as_json: bool) -> int:
    """Ask a policy questions with known answers; exit code 1 when one differs.

    FILE has `[[expect]]` with from, to, services (or publish, subscribe, names, relay, connect), allowed, rule.

    JSON: {"ok", "question", "allowed", "rule", "why"}, one a line

    \b
    Example: meshnode policy test policy-tests.toml
    """
    from meshnode.trust.expectations import parse_expectations
    from meshnode.trust.policy import parse_policy

    policy_file = policy_file or file.parent / "policy.toml"
    policy = parse_policy(_read(policy_file), str(policy_file))
    expected, wrong = parse_expectations(_read(file), str(file)), 0
    for each in expected:
        found, is_right = each.check(policy)
        wrong += not is_right
        value = {"ok": is_right, "question": each.said, "allowed": found.allowed, "rule": found.rule, "why": found.why}
        if as_json or not is_right:
            emit(value, as_json, f"wrong: {each.said}: {'allowed' if found.allowed else 'refused'}: {found.why}")
    if not as_json:
        say(f"{len(expected)} questions, {wrong} wrong answers")
    return 1 if wrong else 0


@policy_group.command("set")
@click.argument("file", type=FILE)
@home_option
@json_option
def set_command(file: Path, home: Path, as_json: bool) -> None:
    """Put a policy in force on this home's node, at once if it runs.

    It is checked, then copied to `policy.toml` in the home, where it may also be edited: a change is in force within a
    second, and what it allows no longer is cut. A policy of the mesh's authority can only be narrowed by it.

    JSON: {"mesh", "local"}, each {"version", "mode", "reasons", "rules", "governed"} or null

    \b
    Example: meshnode policy set policy.toml
    """
    from meshnode.base.files import make_private, write_atomic
    from meshnode.trust.policy import parse_policy

    data = _read(file)
    policy = parse_policy(data, str(file))
    make_private(home)
    write_atomic(home / "policy.toml", data)
    _tell_node(home, as_json, {"mesh": None, "local": policy.to_json()}, f"in force: {_rules(len(policy.rules))}")


@policy_group.command("sign")
@click.argument("file", type=FILE)
@click.option("--out", type=FILE, help="Write the signed policy here instead; any member applies it.")
@home_option
@json_option
def sign_command(file: Path, out: Path | None, home: Path, as_json: bool) -> None:
    """Sign a policy as this mesh's authority, and put it in force at every node.

    The authority's key is that of this home (`meshnode mesh create`), or in MESHNODE_AUTHORITY_KEY. The node that runs
    here hands the policy on; each node verifies it, keeps it, and takes only a higher version from then on.

    JSON: {"mesh", "local"}, with --out {"version", "file"}

    \b
    Example: meshnode policy sign policy.toml
             meshnode policy sign policy.toml --out policy.signed
    """
    from meshnode.base.files import write_atomic, write_given
    from meshnode.cli.authority import authority_secrets
    from meshnode.trust.home_mesh import load_authority
    from meshnode.trust.signed_policy import sign_policy

    authority = load_authority(home, *authority_secrets(home))
    if authority is None:
        hint = "run it in the home where the mesh was made, or set MESHNODE_AUTHORITY_KEY"
        raise ConfigError(f"{home} has no key of an authority", hint=hint)
    signed = sign_policy(authority, _read(file), str(file))
    if out is not None:
        write_given(out, signed.encoded)
        found = {"version": signed.version, "file": str(out)}
        emit(found, as_json, str(out), f"  any member puts it in force: meshnode policy apply {out}")
        return
    path = home / f"policy-{signed.version}.signed"
    write_atomic(path, signed.encoded)
    try:
        _apply(home, path, as_json)
    finally:
        path.unlink(missing_ok=True)


@policy_group.command("apply")
@click.argument("file", type=FILE)
@home_option
@json_option
def apply_command(file: Path, home: Path, as_json: bool) -> None:
    """Hand a signed policy to the running node, which puts it in force and spreads it.

    JSON: {"mesh", "local"}

    \b
    Example: meshnode policy apply policy.signed
    """
    _apply(home, file.absolute(), as_json)


def _apply(home: Path, path: Path, as_json: bool) -> None:
    from meshnode.daemon.requests.policy import PolicyApply

    found = ask_one(home, PolicyApply(str(path)))
    policy = found["mesh"]
    emit(found, as_json, f"version {policy['version']} with {_rules(policy['rules'])} is in force, and spreads")


@policy_group.command("unset")
@home_option
@json_option
def unset_command(home: Path, as_json: bool) -> None:
    """Take this home's own policy out of force; that of the mesh's authority stays.

    JSON: {"mesh", "local"}

    \b
    Example: meshnode policy unset
    """
    path = home / "policy.toml"
    try:
        path.unlink()
    except FileNotFoundError as error:
        raise ConfigError(f"{home} has no policy", hint="`meshnode policy show` says what is in force") from error
    _tell_node(home, as_json, {"mesh": None, "local": None}, "this home has no policy of its own any more")


def _tell_node(home: Path, as_json: bool, offline: dict[str, object], text: str) -> None:
    from meshnode.daemon.requests.policy import PolicyReload

    try:
        emit(ask_one(home, PolicyReload()), as_json, text)
    except NotRunning:
        emit(offline, as_json, text, "  no node runs here now: they hold from its start on")


@policy_group.command("show")
@home_option
@json_option
def show_command(home: Path, as_json: bool) -> None:
    """Show which policies are in force on the running node.

    JSON: {"mesh", "local"}, each {"version", "mode", "reasons", "rules", "governed"} or null

    \b
    Example: meshnode policy show
    """
    from meshnode.daemon.requests.policy import PolicyShow

    found = ask_one(home, PolicyShow())
    lines = []
    for name, words in (("mesh", "of the mesh"), ("local", "of this node")):
        policy = found[name]
        said = f"{_rules(policy['rules'])}, version {policy['version']}, {policy['mode']}" if policy else "none"
        lines.append(f"policy {words:14} {said}")
    emit(found, as_json, *lines)
