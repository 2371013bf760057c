"""Writes the golden vectors: ``python -m tests.vectors.make [--write] [--to FOLDER]``.

Without ``--write`` it only says which files would be new or different. A vector that changes is a change of the wire:
read "Evolution" in docs/reference/wire-format.md first. Keys, clock and entropy are fixed, so each run gives the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from meshnode.gossip.entry import Kind, id_of
from meshnode.identity.keys import Identity
from meshnode.identity.record import EndpointKind
from meshnode.quic.preface import StreamStatus
from meshnode.topics.overlay import scope_of
from tests.vectors.forms import FORMS
from tests.vectors.values import Fields, plain, rich

Case = tuple[Fields, Fields]  # fields, given

SEEDS = [bytes([n]) * 32 for n in range(1, 5)]
A, B, C, D = (Identity(seed).id for seed in SEEDS)
PRICED_SEED = (4165).to_bytes(32, "big")  # of the first number whose id has its price
WALL = 1_700_000_000.25
MS = 1_700_000_000_250
TX, TOKEN, BOOT, ODCID, ID8 = (bytes(range(at, at + 8)) for at in (0x10, 0x20, 0x30, 0x40, 0x50))
NEXT8, RESERVATION, PEER8 = (bytes(range(at, at + 8)) for at in (0x58, 0x60, 0x70))
NONCE, KEY = bytes(range(0x80, 0x98)), bytes(range(0xA0, 0xC0))
V4, V6 = "192.0.2.7:4242", "[2001:db8::7]:4242"
SEALING = {"sender_seed": SEEDS[0], "receiver_seed": SEEDS[1], "mesh": "open", "wall": WALL, "nonce": NONCE}
SECRET = SEALING | {"mesh": "mk-" + "aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypq"}
RECORD = {
    "id": A,
    "seq": MS,
    "issued": MS,
    "ttl": 7200,
    "endpoints": [{"addr": V4, "kind": EndpointKind.HOST}],
    "relays": [],
    "capabilities": [],
}
EVERY_KIND = [{"addr": f"192.0.2.{8 + kind}:4242", "kind": kind} for kind in EndpointKind]
FULL_RECORD = RECORD | {
    "endpoints": [*EVERY_KIND, {"addr": V6, "kind": EndpointKind.HOST}],
    "relays": [B, C],
    "capabilities": ["relay", "wss", "symmetric", "of a later version"],
}
BY_A = {"seed": SEEDS[0], "wall": WALL}
DHT_CONTACTS = [{"id": B, "addr": V4}, {"id": C, "addr": V6}]
CONTACT, BARE = {"id": B, "record": b"\x01record"}, {"id": C, "record": b""}
SCOPE = scope_of("news")


def _entry(kind: Kind, name: str, value: Any, *, ttl: int = 3600) -> Fields:
    return {"origin": A, "kind": kind, "name": name, "seq": MS, "issued": MS, "ttl": ttl, "value": value}


def _encoded(name: str, case: Case) -> bytes:
    return FORMS[name].encode(rich(plain(case[0])), rich(plain(case[1])))


SIGNED = _encoded("record", (RECORD, BY_A))
POLICY = 'version = 3\nreasons = "told"\n\n[[allow]]\nfrom = "role:dev"\nservices = "web"\n'
SIGNED_POLICY = _encoded("policy", ({"text": POLICY}, BY_A))
OFFER = _encoded(
    "entry-service",
    (_entry(Kind.SERVICE, "web", {"restricted": False, "healthy": True, "load": 0, "meta": {}}), BY_A),
)
GRANT = {
    "subject": B,
    "roles": ["db", "web"],
    "services": None,
    "not_before": MS,
    "expires": MS + 86_400_000,
    "delegation": None,
    "serial": ID8,
}
MAY_INVITE = {"roles": ["db", "web"], "services": ["web*"], "depth": 1, "until": MS + 3_600_000, "uses": 2}
MAY_RENEW = {"roles": None, "services": None, "depth": 3, "until": MS + 86_400_000, "uses": 0, "renews": True}
INVITING = GRANT | {"roles": [], "delegation": MAY_INVITE | {"renews": False}}
TICKET = {"mesh": "field", "secret": KEY, "authority": A, "seeds": [f"{C}@192.0.2.7:4242"], "invite": SEEDS[1]}
TOPIC_ENTRY = _entry(Kind.TOPIC, "news", {"epoch": MS - 1, "data": b"hello"}, ttl=60)
REVOCATION = {"target": C, "time": MS, "ends": 2**53, "reason": "stolen", "chain": []}
SIGNED_REVOCATION = _encoded("revocation", (REVOCATION, BY_A))
PAYLOAD = _encoded("entry-topic", (TOPIC_ENTRY, BY_A | {"peer": B}))

CASES: dict[str, list[Case]] = {
    "id-overlay": [({"id": A}, {})],
    "id-dht-key": [({"id": A}, {})],
    "id-price": [({"id": A}, {}), ({"id": Identity(PRICED_SEED).id}, {})],
    "id-text": [({"id": A}, {})],
    "mesh-key": [
        ({"name": "open", "purpose": purpose, "data": data}, {})
        for purpose, data in (("", b""), ("mesh-receiver", A.raw), ("mesh-hint", b""))
    ],
    "handle": [({"odcid": ODCID}, {})],
    "topic-scope": [({"topic": "news"}, {})],
    "sealed": [({"sender": A, "body": body}, given) for body, given in ((b"", SEALING), (b"a body", SECRET))],
    "knock": [({"sender": A}, given | {"odcid": ODCID}) for given in (SEALING, SECRET)],
    "tunnel-name": [({"sender": A}, SEALING)],
    "mdns-text": [({"record": SIGNED, "sent": WALL, "asks": asks}, SEALING) for asks in (True, False)],
    "relay-frame": [
        ({"reservation": RESERVATION, "peer": PEER8, "inner": b"\x01inner"}, {"key": KEY, "direction": direction})
        for direction in ("up", "down")
    ],
    "ping": [
        ({"flags": flags, "tx": TX, "handle": handle}, {"size": size})
        for flags, handle, size in (
            ([], bytes(8), 32),
            (["moved"], ID8, 32),
            (["seeking"], ID8, 32),
            (["echo"], ID8, 32),
            (["moved", "seeking"], ID8, 64),
            (["expand"], ID8, 64),
        )
    ],
    "pong": [
        ({"flags": flags, "tx": TX, "observed": at}, {})
        for flags, at in (([], V4), ([], V6), (["no such connection"], None))
    ]
    + [
        ({"flags": ["expanded"], "tx": TX, "observed": V4}, {"size": 64}),
        ({"flags": ["no such connection", "expanded"], "tx": TX, "observed": None}, {"size": 32}),
    ],
    "record": [(RECORD, BY_A), (FULL_RECORD, BY_A)],
    "grant": [
        (GRANT, BY_A),
        (GRANT | {"roles": [], "services": ["db", "web*"]}, BY_A),
        (INVITING, BY_A),
        (GRANT | {"delegation": MAY_RENEW}, BY_A),
        (GRANT | {"lineage": [ID8, C.raw]}, BY_A),
    ],
    "policy": [({"text": text}, BY_A) for text in ("version = 1", POLICY)],
    "rotation": [({"serial": MS, "key": KEY, "begins": MS + 1, "ends": MS + 2}, BY_A)],
    "control-mesh-key": [({"rotation": b"a rotation"}, {})],
    "succession": [({"time": MS, "ends": MS + 9}, BY_A | {"new": SEEDS[1]})],
    "revocation": [
        (REVOCATION, BY_A | {"authority": A}),
        (REVOCATION | {"target": ID8, "ends": MS + 5, "reason": ""}, BY_A | {"authority": A}),
        (
            REVOCATION | {"target": B, "chain": [_encoded("grant", (GRANT, BY_A))]},
            BY_A | {"seed": SEEDS[1], "authority": A},
        ),
    ],
    "revocation-name": [({"revocation": SIGNED_REVOCATION}, {})],
    "revocation-dht-key": [({"target": bytes(range(32))}, {}), ({"target": bytes(range(8))}, {})],
    "offer-dht-key": [
        ({"kind": int(kind), "name": name}, {})
        for kind, name in ((Kind.SERVICE, "web"), (Kind.NAME, "web"), (Kind.SERVICE, "ü"))
    ],
    "offer-bundle": [
        ({"entries": [OFFER]}, {}),
        ({"entries": [OFFER, _encoded("entry", (_entry(Kind.SERVICE, "web", None), BY_A | {"seed": SEEDS[1]}))]}, {}),
    ],
    "grant-id": [({"grant": _encoded("grant", (GRANT, BY_A))}, {})],
    "ticket": [(TICKET | {"chain": [_encoded("grant", (INVITING, BY_A))]}, {})],
    "entry": [
        (_entry(Kind.SERVICE, "web", None), BY_A),
        (_entry(15, "of a later version", b"stored"), BY_A),  # type: ignore[arg-type]
        (_entry(0xFFFF, "of a later version", b"fleeting", ttl=60), BY_A),  # type: ignore[arg-type]
    ],
    "entry-member": [
        (_entry(Kind.MEMBER, "", {"left": left, "record": record}), BY_A)
        for left, record in ((False, SIGNED), (False, b""), (True, b""))
    ],
    "entry-accusation": [
        (_entry(Kind.ACCUSATION, str(B), {"accused": B, "incarnation": MS - 5}), BY_A),
    ],
    "entry-service": [
        (_entry(Kind.SERVICE, "web", {"restricted": False, "healthy": True, "load": 0, "meta": {}}), BY_A),
        (
            _entry(
                Kind.SERVICE,
                "web",
                {"restricted": True, "healthy": False, "load": 100, "meta": {"zone": "b", "a": "ü"}},
            ),
            BY_A,
        ),
    ],
    "entry-name": [(_entry(Kind.NAME, "laptop", MS - 9), BY_A)],
    "entry-subscription": [(_entry(Kind.SUBSCRIPTION, SCOPE.hex(), SCOPE), BY_A | {"topic": "news"})],
    "entry-redemption": [
        (_entry(Kind.REDEMPTION, "0123456789abcdef", _encoded("grant", (GRANT, BY_A))), BY_A),
    ],
    "entry-grants": [(_entry(Kind.GRANTS, "", _encoded("grant", (GRANT, BY_A))), BY_A)],
    "entry-topic": [(TOPIC_ENTRY, BY_A | {"peer": B})],
    "stream-header": [({"service": service}, {}) for service in ("web", "\0topics", "größe")],
    "stream-flow": [({"service": service}, {}) for service in ("\0has/web", "\0flow/dns")],
    "datagram": [({"flow": flow, "data": data}, {}) for flow in (4, 65, 16_384, 1 << 30) for data in (b"query", b"")],
    "stream-status": [({"status": status.name}, {}) for status in StreamStatus],
    "control-hello": [
        (
            {"boot": BOOT, "record": record, "grants": grants},
            {"seed": SEEDS[0], "listener": B, "odcid": ODCID, "binding": bytes(range(32))},
        )
        for record, grants in ((b"", []), (SIGNED, [b"a grant", b""]))
    ],
    "control-welcome": [({"boot": BOOT, "record": record}, {}) for record in (b"", SIGNED)],
    "control-grants": [({"grants": [_encoded("grant", (INVITING, BY_A)), b"a grant"]}, {})],
    "control-renew": [({}, {})],
    "control-renewed": [({"grants": grants}, {}) for grants in ([], [b"a grant", b"a renewed one"])],
    "control-revoked-have": [({"prints": bytes(range(128))}, {})],
    "control-revoked-ask": [({"bucket": 15, "names": names}, {}) for names in (b"", bytes(range(32)))],
    "control-revoked": [
        ({"bucket": None, "statements": [SIGNED_REVOCATION]}, {}),
        ({"bucket": 3, "statements": []}, {}),
    ],
    "control-policy-have": [({"version": version}, {}) for version in (1, 2**53)],
    "control-policy-ask": [({"version": 3, "part": part}, {}) for part in (0, 5)],
    "control-policy-part": [
        ({"version": 3, "part": 0, "parts": 1, "bytes": _encoded("policy", ({"text": POLICY}, BY_A))}, {})
    ],
    "control-record": [({"record": SIGNED}, {})],
    "control-relay-ask": [({}, {})],
    "control-relay-grant": [({"reservation": RESERVATION, "key": KEY}, {})],
    "control-relay-refuse": [({"reason": "this relay is full"}, {})],
    "control-introduce": [({"id": B}, {})],
    "control-introduced": [({"id": B, "address": at, "delay": delay}, {}) for at, delay in ((V4, 0), (V6, 1000))],
    "control-search": [({}, {})],
    "control-key-in-use": [({}, {})],
    "control-gossip": [({"message": bytes.fromhex("8204f5")}, {})],
    "control-gossip-idle": [({"idle": idle}, {}) for idle in (True, False)],
    "dht-10": [({"tx": TX}, {"pad_to": size}) for size in (0, 64)],
    "dht-11": [({"tx": TX, "token": TOKEN}, {})],
    "dht-12": [({"tx": TX, "key": A.dht_key}, {"pad_to": size}) for size in (0, 300)],
    "dht-13": [({"tx": TX, "token": token, "contacts": c}, {}) for token, c in ((b"", []), (TOKEN, DHT_CONTACTS))],
    "dht-14": [({"tx": TX, "key": A.dht_key}, {"pad_to": size}) for size in (0, 1105)],
    "dht-15": [
        ({"tx": TX, "token": token, "contacts": contacts, "record": record}, {})
        for token, contacts, record in ((b"", [], b""), (TOKEN, DHT_CONTACTS, SIGNED))
    ],
    "dht-16": [({"tx": TX, "token": token, "record": SIGNED}, {}) for token in (b"", TOKEN)],
    "dht-17": [({"tx": TX, "status": status, "token": TOKEN}, {}) for status in range(5)],
    "dht-18": [
        ({"tx": TX, "token": token, "key": A.dht_key, "seq": seq, "seconds": seconds}, {"pad_to": size})
        for token, seq, seconds, size in ((b"", 0, 0, 300), (TOKEN, MS, 90, 0))
    ],
    "dht-19": [
        ({"tx": TX, "status": status, "token": token, "record": record}, {})
        for status, token, record in ((0, TOKEN, SIGNED), (2, TOKEN, b""))
    ],
    "dht-1a": [({"tx": TX, "record": SIGNED}, {})],
    "dht-1b": [({"tx": TX}, {})],
    "gossip-01": [({"record": record}, {}) for record in (b"", SIGNED)],
    "gossip-02": [({"contact": CONTACT, "ttl": 8}, {})],
    "gossip-03": [({"high": high, "record": b"\x01record"}, {}) for high in (True, False)],
    "gossip-04": [({"accepted": accepted}, {}) for accepted in (True, False)],
    "gossip-05": [({"leaving": leaving}, {}) for leaving in (True, False)],
    "gossip-06": [({"tx": 2**32 - 1, "ttl": 6, "contacts": [CONTACT, BARE]}, {})],
    "gossip-07": [({"tx": 7, "contacts": contacts}, {}) for contacts in ([], [BARE, CONTACT])],
    "gossip-08": [({"tx": 7, "contact": CONTACT}, {})],
    "gossip-09": [({"tx": 7, "alive": alive}, {}) for alive in (True, False)],
    "gossip-10": [
        ({"scope": b"", "items": [[3, b"\x01entry"]]}, {}),
        ({"scope": SCOPE, "items": [[0, PAYLOAD], [64, b"\x01entry"]]}, {}),
    ],
    "gossip-11": [({"scope": scope, "items": [[3, ID8], [64, NEXT8]]}, {}) for scope in (b"", SCOPE)],
    "gossip-12": [({"scope": scope, "ids": [ID8, NEXT8]}, {}) for scope in (b"", SCOPE)],
    "gossip-13": [({"scope": scope}, {}) for scope in (b"", SCOPE)],
    "gossip-14": [({"prints": prints}, {}) for prints in ([2**64 - 1], [1, 2, 3, 4])],
    "gossip-15": [
        ({"buckets": 1, "full": False, "ids": []}, {}),
        ({"buckets": 4, "full": True, "ids": [[0, [ID8, NEXT8]], [3, []]]}, {}),
    ],
    "gossip-16": [({"ids": [ID8, NEXT8]}, {})],
    "gossip-17": [({"last": not found, "payloads": found}, {}) for found in ([], [PAYLOAD, b"e"])],
    "topics-01": [({"scope": SCOPE}, {})],
    "topics-02": [({"scope": SCOPE}, {})],
    "topics-03": [({"scope": SCOPE, "ids": [ID8, NEXT8]}, {})],
    "topics-04": [({"scope": SCOPE, "items": [[0, PAYLOAD], [64, b"\x01entry"]]}, {})],
    "topics-05": [({"scope": SCOPE, "items": [[3, ID8], [64, NEXT8]]}, {})],
    "topics-06": [({"scope": SCOPE, "ids": ids}, {}) for ids in ([], [ID8, NEXT8])],
    "topics-07": [({"scope": SCOPE}, {})],
    "topics-08": [({"scope": SCOPE, "ids": [ID8, NEXT8]}, {})],
    "topics-09": [({"scope": SCOPE, "hops": hops}, {}) for hops in (0, 19)],
    "topics-10": [({"scope": SCOPE}, {})],
}


def made(name: str) -> dict[str, Any]:
    """Return what the file of a form has to say, made by the present code."""
    form = FORMS[name]
    number = {} if form.number is None else {"number": int(form.number)}
    cases = []
    for fields, given in CASES[name]:
        fields, given = plain(fields), plain(given)
        data = form.encode(rich(fields), rich(given))
        if name.startswith("entry"):
            fields |= {"id": plain(id_of(data))}
        cases.append({"fields": fields, "given": given, "hex": data.hex()})
    return {"description": form.description, **number, "cases": cases}


def text(name: str) -> str:
    """Return the file of a form."""
    return json.dumps(made(name), indent=1, ensure_ascii=True) + "\n"


def main(folder: Path, write: bool) -> int:
    """Compare the files with what the code makes; 1 when they differ and were not written."""
    changed = 0
    for name in FORMS:
        path, now = folder / f"{name}.json", text(name)
        old = path.read_text() if path.exists() else None
        if old == now:
            continue
        changed += 1
        print(f"{'new' if old is None else 'DIFFERENT'}: {path.name}")
        if write:
            path.write_text(now)
    if changed and not write:
        print("nothing was written: --write does it", file=sys.stderr)
    return 1 if changed and not write else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare or write the golden vectors")
    parser.add_argument("--write", action="store_true", help="write what is new or different")
    parser.add_argument("--to", type=Path, default=Path(__file__).parent, help="the folder of the vectors")
    options = parser.parse_args()
    sys.exit(main(options.to, options.write))
