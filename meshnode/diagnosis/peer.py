"""Findings on one peer: why the connection is direct, relayed or absent, from a snapshot of that peer."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from meshnode.diagnosis.finding import (
    Finding,
    Snapshot,
    change_in_words,
    ms,
    note,
    ok,
    opened_by_us,
    plural,
    problem,
    seconds,
    short,
)

MAX_LISTED = 6
SYMMETRIC = "symmetric"  # the capability by which a record says so


def diagnose_peer(peer: Snapshot, nat: Snapshot) -> list[Finding]:
    """Return the findings on one peer: its record, the path, what was tried, the last changes.

    ``nat`` is this node's own, as in ``status``. Of addresses, attempts and changes at most ``MAX_LISTED`` are told.
    """
    if peer.get("self"):
        return [note("peer", "that id is this node's own", "name another node's id")]
    if not peer.get("connected"):
        return list(_absent(peer))
    return [*_record(peer), *_path(peer, nat), *_changes(peer)]


def _record(peer: Snapshot) -> Iterator[Finding]:
    record, name = peer.get("record"), short(peer.get("id"))
    if record is None:
        yield note("peer", f"there is no fresh record of {name}; the connection does not need one")
        return
    relays = record.get("relays") or []
    through = f", and relays {', '.join(map(short, relays))}" if relays else ""
    where = ", ".join(record.get("endpoints") or ()) or "no address"
    yield ok("peer", f"{name} publishes {where}{through} (from {record.get('source') or 'the cache'})")


def _absent(peer: Snapshot) -> Iterator[Finding]:
    name, failed = short(peer.get("id")), peer.get("error") or {}
    message, code = str(failed.get("message", "no connection")), failed.get("code")
    hint = str(failed.get("hint") or "is it running, and in the same mesh?")
    if peer.get("record") is None and code == "not_found":
        yield problem(
            "peer", f"no source knows where {name} is: neither a live peer, mDNS nor the DHT has its record", hint
        )
        return
    if code == "policy_denied":
        yield problem(
            "peer", f"{name} answers and refuses this node: {message}", "its operator must allow this id (--allow)"
        )
        return
    yield from _record(peer) if peer.get("record") is not None else ()
    yield problem("peer", f"there is no connection to {name}: {message}", hint)
    attempts = peer.get("attempts") or ()
    for attempt in attempts[:MAX_LISTED]:
        yield note("tried", f"{short(attempt.get('endpoint'))}: {attempt.get('outcome')}")
    if len(attempts) > MAX_LISTED:
        yield note("tried", f"and {plural(len(attempts) - MAX_LISTED, 'more address', 'more addresses')}, see --json")


def _path(peer: Snapshot, nat: Snapshot) -> Iterator[Finding]:
    name, rtt = short(peer.get("id")), peer.get("rtt_ms")
    away = f", {ms(rtt)} away" if rtt is not None else ""
    at, state = short(peer.get("endpoint")), peer.get("state")
    if state == "suspended":
        yield problem(
            "path",
            f"no address of {name} answers now; its streams wait",
            "they go on as soon as either end has a network again",
        )
    elif state == "seeking" or ("echo_ms" in peer and peer["echo_ms"] is None):
        yield problem(
            "path",
            f"{name} has just fallen silent; all its addresses are being tried",
            "ask again in a moment: has it stopped, or is it moving?",
        )
    elif peer.get("tunnel"):
        if opened_by_us(peer):
            yield note("path", f"{name} is reached by WebSocket over TCP ({at}{away}): nothing answers by UDP")
        else:
            yield note("path", f"{name} came by WebSocket over TCP{away}: its network seems to block UDP")
    elif peer.get("path") != "relay":
        kind = "on this network" if peer.get("path") == "lan" else "directly"
        yield ok("path", f"{name} is reached {kind} at {at}{away}")
    else:
        yield note("path", f"{name} is reached through {at}{away}, because {why_relayed(peer, nat)}")
    yield from _tried(peer)


def why_relayed(peer: Snapshot, nat: Snapshot) -> str:
    """Return the likeliest reason why there is no direct path, as the end of a sentence ("because ...").

    Args:
        peer: The peer's snapshot; its ``candidates`` say what was probed and what answered.
        nat: This node's own NAT, as in ``status``.

    Two endpoint-dependent NATs (RFC 4787 section 4.1) are blamed before addresses that did not answer.
    """
    direct = [c for c in peer.get("candidates") or () if c.get("path") in ("direct", "lan") and not c.get("tunnel")]
    if not direct:
        return "the peer has no address of its own that this node could try"
    answering = [c for c in direct if c.get("state") == "validated"]
    if answering:
        return _why_not_yet(answering)
    return _why_unguessed(peer, nat) or _why_unanswered(direct)


def _why_not_yet(answering: list[Snapshot]) -> str:
    wait = max(float(c.get("distrusted_s") or 0.0) for c in answering)
    if wait:
        return f"the direct path fell silent a short time ago and is not trusted for {seconds(wait)} more"
    return "a direct path has only just answered; the switch is under way"


def _why_unguessed(peer: Snapshot, nat: Snapshot) -> str:
    """Blame the NATs that show every peer another port; "" when neither end has one."""
    own = nat.get("mapping") == "endpoint-dependent"
    far = SYMMETRIC in ((peer.get("record") or {}).get("capabilities") or ())
    if own and far:
        return "both NATs show every peer another port, so neither end can guess where the other is"
    if own or far:
        owner = "this node's" if own else "the peer's"
        return f"{owner} NAT shows every peer another port, which the other end has not guessed yet"
    return ""


def _why_unanswered(direct: list[Snapshot]) -> str:
    probed = [c for c in direct if c.get("probes")]
    if not probed:
        return "its other addresses have not been tried yet"
    hosts = [str(c.get("endpoint")).rpartition(":")[0].partition("%")[0].strip("[]") for c in probed]
    private = all(ipaddress.ip_address(host).is_private for host in hosts)
    count = plural(len(probed), "direct address", "direct addresses")
    verb = "was" if len(probed) == 1 else "were"
    where = ", all of them private ones of some other network" if private else ""
    return f"{count} {verb} probed and none answered{where}"


def _tried(peer: Snapshot) -> Iterator[Finding]:
    others = [c for c in peer.get("candidates") or () if not c.get("in_use")]
    for candidate in others[:MAX_LISTED]:
        failures = candidate.get("failures")
        left = f", left {plural(failures, 'time')} because it fell silent" if failures else ""
        where = f"{short(candidate.get('endpoint'))} (from {candidate.get('source')})"
        topic = "tried" if candidate.get("probes") or candidate.get("answers") or failures else "known"
        yield note(topic, f"{where}: {_outcome(candidate)}{left}")
    if len(others) > MAX_LISTED:
        yield note("tried", f"and {plural(len(others) - MAX_LISTED, 'more address', 'more addresses')}, see --json")


def _outcome(candidate: Snapshot) -> str:
    probes, answers = candidate.get("probes") or 0, candidate.get("answers") or 0
    if not answers:
        if probes:
            return f"no answer to {plural(probes, 'probe')}"
        return "it was in use" if candidate.get("failures") else "not tried yet"
    rtt, heard = candidate.get("rtt_ms"), candidate.get("heard_s")
    outcome = f"answered {answers} of {plural(probes, 'probe')}" + (f" in {ms(rtt)}" if rtt is not None else "")
    return outcome + (f", last heard {seconds(heard)} ago" if heard is not None else "")


def _changes(peer: Snapshot) -> Iterator[Finding]:
    for change in (peer.get("history") or ())[-MAX_LISTED:]:
        where = f": {short(change['endpoint'])}" if change.get("endpoint") else ""
        yield note("history", f"{seconds(float(change.get('ago_s', 0)))} ago{where}, {change_in_words(change)}")
