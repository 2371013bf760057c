"""Findings on the node's network, from a snapshot (``daemon/diagnose.py`` documents its keys). One function a topic."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Sequence
from shlex import quote

from meshnode.diagnosis.finding import Finding, Snapshot, ms, note, ok, opened_by_us, plural, problem, seconds, short
from meshnode.diagnosis.host import on_clock, on_degraded, on_grant

RECENT_S = 60.0  # four keepalives: a node that was heard within this is there
TUNNEL_S = 20.0  # where WebSockets are in use, one keepalive and a bit
ULA = ipaddress.ip_network("fc00::/7")


def diagnose(snapshot: Snapshot) -> list[Finding]:
    """Return everything that can be told of the node and its network, in a fixed order of topics: causes come first.

    Every key of ``snapshot`` may be missing. Without ``running`` it covers this host's addresses and the names of the
    seeds alone.
    """
    if not snapshot.get("running"):
        topics: tuple[Callable[[Snapshot], Iterator[Finding]], ...] = (_absent, _addresses, _names, _seeds)
    else:
        topics = (
            _node,
            _addresses,
            _names,
            _udp,
            _nat,
            _ipv6,
            _mappings,
            _relays,
            _mdns,
            on_clock,
            on_grant,
            _dht,
            _seeds,
            on_degraded,
        )
    return [finding for topic in topics for finding in topic(snapshot)]


def hosts(snapshot: Snapshot, version: int) -> list[str]:
    """Return this host's addresses of an IP version (4 or 6) that others could use.

    Loopback and link-local ones are left out; private and unique local ones are kept.
    """
    found = []
    for host, _ in snapshot.get("addresses", ()):
        ip = ipaddress.ip_address(str(host).partition("%")[0])
        if ip.version == version and not (ip.is_loopback or ip.is_link_local):
            found.append(str(host))
    return found


def _global6(snapshot: Snapshot) -> list[str]:
    return [host for host in hosts(snapshot, 6) if ipaddress.ip_address(host) not in ULA]


def _confined(snapshot: Snapshot) -> bool:
    """Return True when the node has loopback addresses only: nothing can be told of the network beyond."""
    endpoints = snapshot.get("status", {}).get("endpoints") or ()
    found = [str(endpoint).rpartition(":")[0].strip("[]") for endpoint in endpoints]
    return bool(found) and all(ipaddress.ip_address(host.partition("%")[0]).is_loopback for host in found)


def _absent(snapshot: Snapshot) -> Iterator[Finding]:
    home = str(snapshot.get("home", "this home"))
    yield problem(
        "node",
        f"no node runs in {home}, so only this host can be looked at",
        f"start one and ask again: meshnode --home {quote(home)} up",
    )


def _node(snapshot: Snapshot) -> Iterator[Finding]:
    status = snapshot.get("status", {})
    endpoints = status.get("endpoints") or []
    where = ", ".join(map(short, endpoints)) or "no address"
    live = plural(int(status.get("peers", 0)), "live peer")
    what = {"leaf": "leaf", "seed": "seed"}.get(str(status.get("role")), "node")
    name, up = short(status.get("id", "")), seconds(status.get("uptime_s", 0))
    yield ok(
        "node",
        f"{what} {name} has been up for {up}, with {live}, at {where}; QUIC by {status.get('engine', 'aioquic')}",
    )
    if refusal := status.get("engine_refused"):
        yield note("engine", str(refusal), "install the versions that the project's lock file names")
    if _confined(snapshot):
        yield note(
            "node",
            "it listens on a loopback address only, so no node beyond this host can reach it",
            "start it without --listen to use every address",
        )


def _addresses(snapshot: Snapshot) -> Iterator[Finding]:
    four, six = hosts(snapshot, 4), _global6(snapshot)
    if not four and not hosts(snapshot, 6):
        yield problem(
            "addresses",
            "this host has no address on any network",
            "connect it to a network; a running node notices by itself",
        )
    elif not snapshot.get("running"):
        yield ok("addresses", f"this host's addresses are {', '.join(four + hosts(snapshot, 6))}")
        if not six:
            yield _no_global6(four)


def _no_global6(four: Sequence[str]) -> Finding:
    rest = "IPv4 is used" if four else "without IPv4 it reaches its own network only"
    return note("ipv6", f"this host has no global IPv6 address; {rest}")


def _udp(snapshot: Snapshot) -> Iterator[Finding]:
    udp, seeds = snapshot.get("udp", {}), snapshot.get("seeds", ())
    tunnelled = list(filter(opened_by_us, snapshot.get("peers", ())))
    outside, lan = udp.get("outside_s"), udp.get("lan_s")
    on_lan = _is_recent(lan, RECENT_S)
    if _is_recent(outside, TUNNEL_S if tunnelled else RECENT_S):
        yield ok("udp", f"UDP works: a peer outside this network was heard {seconds(outside)} ago")
    elif tunnelled:
        where = "beyond this network" if on_lan else "here"
        yield problem(
            "udp",
            f"UDP is blocked {where}: {plural(len(tunnelled), 'peer')} had to be reached by WebSocket over TCP, "
            "which works but is slower",
            "let UDP out in the firewall, or ask the administrator of this network to",
        )
    elif on_lan:
        yield ok("udp", f"UDP works on this network (heard {seconds(lan)} ago); no node outside of it has answered yet")
    elif seeds and all(seed.get("error") for seed in seeds):
        yield note("udp", "whether UDP works cannot be told: no name of a seed resolves, so no node was asked")
    elif any(not seed.get("answers") for seed in seeds):
        failed = int(snapshot.get("status", {}).get("counters", {}).get("tunnel_failures", 0))
        how = "by UDP or by WebSocket over TCP" if failed else "by UDP"
        yield problem(
            "udp",
            f"no node answers {how}",
            "is this host online, and does its firewall let UDP out? The findings on seeds say more",
        )
    else:
        yield note(
            "udp",
            "whether UDP works cannot be told: there is no node to ask",
            "name a seed: meshnode up --seed ID@HOST:PORT",
        )


def _is_recent(age: float | None, limit: float) -> bool:
    return age is not None and age < limit


MAPPINGS = {
    "none": "there is no NAT: others see this node at its own address",
    "endpoint-independent": "the NAT shows all peers one outside address{at} (endpoint-independent mapping), "
    "so direct paths can be punched",
    "endpoint-dependent": "the NAT shows every peer another port (endpoint-dependent mapping, 'symmetric'), "
    "so peers behind strict NATs may have to be reached through relays",
    "unknown": "how the NAT maps is not known yet{at}: it takes two peers outside this network to tell",
}
FILTERS = {
    "endpoint-independent": "it lets any host in unasked (endpoint-independent filtering)",
    "at-most-address-dependent": "of a host that this node has sent to, it lets other ports in too "
    "(address-dependent filtering, at most)",
    "unknown": "what it lets in unasked is not known: nothing that came in so far proves it",
}


def _nat(snapshot: Snapshot) -> Iterator[Finding]:
    nat = snapshot.get("status", {}).get("nat", {})
    if _confined(snapshot):
        return
    for family, suffix, mine in ((4, "", hosts(snapshot, 4)), (6, "_ipv6", _global6(snapshot))):
        mapping = str(nat.get(f"mapping{suffix}", "unknown"))
        if mapping == "unknown" and (family == 6 or not mine):
            continue  # the IPv6 finding says that no node has answered
        yield _mapping(nat, family, mapping)
        filtering = str(nat.get(f"filtering{suffix}", "unknown"))
        said = FILTERS.get(filtering, filtering)
        yield (note if filtering == "unknown" else ok)("filtering", f"IPv{family}: {said}")


def _mapping(nat: Snapshot, family: int, mapping: str) -> Finding:
    outside = [addr for addr in nat.get("reflexive", ()) if str(addr).startswith("[") == (family == 6)]
    at = f", {outside[0]}" if outside else ""
    text = f"IPv{family}: {MAPPINGS.get(mapping, mapping).format(at=at)}"
    if mapping == "endpoint-dependent":
        return note("nat", text, "a port mapping on the router, or --advertise with a forwarded port, mends it")
    return (note if mapping == "unknown" else ok)("nat", text)


def _ipv6(snapshot: Snapshot) -> Iterator[Finding]:
    if _confined(snapshot):
        return
    mine = _global6(snapshot)
    seen = snapshot.get("status", {}).get("nat", {}).get("mapping_ipv6", "unknown") != "unknown"
    spoken = seen or any(
        peer.get("path") == "direct" and str(peer.get("endpoint")).startswith("[") for peer in snapshot.get("peers", ())
    )
    if spoken:
        yield ok("ipv6", f"IPv6 works: peers outside this network answer over it ({', '.join(mine) or 'by a ULA'})")
    elif mine:
        yield note("ipv6", f"this host has IPv6 ({', '.join(mine)}), but no node outside has answered over it yet")
    else:
        yield _no_global6(hosts(snapshot, 4))


def _mappings(snapshot: Snapshot) -> Iterator[Finding]:
    nat = snapshot.get("status", {}).get("nat", {})
    mappings = nat.get("mappings") or ()
    for mapping in mappings:
        text = f"the router forwards {mapping.get('external', 'a port')} to this node"
        text += f" ({mapping['protocol']})" if mapping.get("protocol") else ""
        if mapping.get("private"):
            yield note("mappings", f"{text}, but that is a private address: there is another NAT beyond it")
        else:
            yield ok("mappings", text)
    if not mappings:
        yield from _unmapped(nat.get("port_mapping") or ())


def _unmapped(routes: Iterable[Snapshot]) -> Iterator[Finding]:
    for route in routes:
        router, state = route.get("router", "here"), route.get("state")
        said = ", ".join(
            f"{name}: {what}" for name, what in route.items() if name not in ("router", "internal", "state")
        )
        if state == "asking":
            yield note("mappings", f"the router {router} is being asked for a port")
        elif state == "none offered":
            text = f"the router {router} forwards no port when asked" + (f" ({said})" if said else "")
            yield note("mappings", text, "switch on PCP, NAT-PMP or UPnP there, if it has them")


def _relays(snapshot: Snapshot) -> Iterator[Finding]:
    relays = snapshot.get("status", {}).get("relays", {})
    rtts = {peer.get("id"): peer for peer in snapshot.get("peers", ())}
    if "clients" in relays:
        yield ok("relays", f"this node is a relay, with {plural(int(relays['clients']), 'client')}")
        return
    held = [one for one in relays.get("held", ()) if one.get("granted")]
    for one in held:
        peer = rtts.get(one.get("relay"), {})
        rtt = peer.get("rtt_ms")
        how = ", by WebSocket" if peer.get("tunnel") else ""
        what = "named in its record" if one.get("home") else "for a peer's sake"
        away = f" {ms(rtt)} away" if rtt is not None else ""
        yield ok("relays", f"relay {short(one.get('relay'))} is held{away}{how}, {what}")
    if not held:
        yield note(
            "relays",
            "no relay is held: peers that cannot be reached directly cannot be reached at all",
            "name a seed that relays (every `meshnode seed` does)",
        )


def _mdns(snapshot: Snapshot) -> Iterator[Finding]:
    mdns = snapshot.get("status", {}).get("mdns", {})
    heard = int(mdns.get("neighbours", 0))
    if not mdns.get("on"):
        yield note("mdns", "mDNS is off, so nodes on this LAN are not found without a seed")
    elif mdns.get("error"):
        yield problem(
            "mdns",
            f"multicast does not work here: {mdns['error']}",
            "nodes on this LAN then need a seed; containers and some Wi-Fi networks have no multicast",
        )
    elif not mdns.get("announced", True):
        yield note("mdns", "mDNS is still starting")
    elif heard:
        yield ok("mdns", f"multicast works: {plural(heard, 'node')} on this LAN found by mDNS")
    else:
        yield note("mdns", "mDNS is on and no node was heard: no other node is on this LAN, or it carries no multicast")


def _hears_lan(snapshot: Snapshot) -> bool:
    mdns = snapshot.get("status", {}).get("mdns", {})
    return bool(mdns.get("on")) and not mdns.get("error")


def _dht(snapshot: Snapshot) -> Iterator[Finding]:
    contacts = int(snapshot.get("status", {}).get("contacts", 0))
    if snapshot.get("settings", {}).get("dht") is False:
        yield note("dht", "the DHT is off: peers are found through live connections and mDNS only")
    elif contacts:
        yield ok("dht", f"the DHT has {plural(contacts, 'contact')} to ask where a node is")
    elif seeds := snapshot.get("seeds"):
        told = note if all(seed.get("error") for seed in seeds) else problem
        yield told(
            "dht", "the DHT has no contact, so no node can be asked where a peer is", "see the findings on seeds"
        )
    else:
        others = "only nodes on this LAN" if _hears_lan(snapshot) else "no other node"
        yield note(
            "dht",
            f"the DHT has no contact: {others} can be found",
            "name any node of the mesh: meshnode up --seed ID@HOST:PORT",
        )


def _names(snapshot: Snapshot) -> Iterator[Finding]:
    for seed in snapshot.get("seeds", ()):
        if seed.get("error"):
            text = f"{_seed(seed)}: the name does not resolve ({seed['error']})"
            yield problem("seeds", text, "check the name, and this host's DNS")


def _seed(seed: Snapshot) -> str:
    host = str(seed.get("host"))
    return f"seed {short(seed.get('id'))} at {f'[{host}]' if ':' in host else host}:{seed.get('port')}"


def _seeds(snapshot: Snapshot) -> Iterator[Finding]:
    for seed in snapshot.get("seeds", ()):
        name = _seed(seed)
        if seed.get("error"):
            continue  # told first
        elif not snapshot.get("running"):
            yield ok("seeds", f"{name}: the name resolves to {', '.join(seed.get('addresses', ()))}")
        elif seed.get("answers"):
            how = ", by WebSocket" if seed.get("tunnel") else ""
            rtt = seed.get("rtt_ms")
            yield ok(
                "seeds", f"{name} answers" + (f" in {ms(rtt)} ({seed.get('path')}{how})" if rtt is not None else "")
            )
        else:
            why = seed.get("why") or "no answer"
            yield problem(
                "seeds",
                f"{name} does not answer: {why}",
                "does it run, under this id and in this mesh (--mesh), and does its firewall let UDP in at that port?",
            )
