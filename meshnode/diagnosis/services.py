"""Findings on what this node exposes and forwards, from a snapshot."""

from __future__ import annotations

from collections.abc import Iterator

from meshnode.diagnosis.finding import Finding, Snapshot, note, ok, plural, problem, seconds

LONGEST = 996  # bytes of an offer that fits the DHT (``directory/bundle.py``)


def diagnose_services(snapshot: Snapshot) -> list[Finding]:
    """Return the findings on ``services`` (exposed here) and ``forwards``.

    None where there is neither.
    """
    return [*_services(snapshot), *_too_long(snapshot), *_forwards(snapshot)]


def _services(snapshot: Snapshot) -> Iterator[Finding]:
    for item in snapshot.get("exposes") or ():
        name, target, allow = item.get("name"), item.get("target"), item.get("allow") or ()
        if item.get("target_error"):
            yield problem(
                "services",
                f"{name}: its target {target} does not answer: {item['target_error']}",
                f"start that program, or name another target: meshnode expose {name} PORT",
            )
        elif not allow:
            yield note("services", f"{name} works, but no node may use it", f"meshnode expose {name} ... --allow NODE")
        else:
            users = "every member" if "any" in allow else plural(len(allow), "node")
            yield ok("services", f"{name} works: {target} answers; {users} may use it")


def _too_long(snapshot: Snapshot) -> Iterator[Finding]:
    """Tell of services that gossip alone tells of, in a mesh in which it does not tell all."""
    for name in (snapshot.get("status", {}).get("offers") or {}).get("too_long") or ():
        yield problem(
            "services",
            f"{name}: what it says of itself is too long for the DHT; in a mesh so large some nodes will not find it",
            f"give it less metadata: with its name and signature it may have {LONGEST} bytes",
        )


def _forwards(snapshot: Snapshot) -> Iterator[Finding]:
    for item in snapshot.get("forwards") or ():
        where = f"{item.get('listen')} -> {item.get('to')}"
        wrong, last = item.get("problem"), item.get("last_error")
        if item.get("error"):
            yield problem(
                "forwards",
                f"{where}: nothing listens: {item['error']}",
                "free that address; it is tried again by itself",
            )
        elif wrong:
            hint = wrong.get("hint") or "is that node running, and in the same mesh?"
            yield problem("forwards", f"{where}: {wrong.get('message')}", hint)
        elif last:
            ago = seconds(float(last.get("ago_s") or 0.0))
            yield note("forwards", f"{where} works; its last connection, {ago} ago, failed: {last.get('message')}")
        else:
            yield ok("forwards", f"{where} works")
