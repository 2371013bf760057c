"""The handshake as symbolic roles: knock, TLS 1.3 with the listener's certificate, Hello, Welcome, data.

A role says which messages it takes (all values that an attacker may choose are tried) and what it sends then. Each
``Defence`` can be left out, one by one: the checker must then find the attack that it is there for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum

from tests.model.terms import Knowledge, Term, agent, dh, kdf, label, mac, seal, share, sign, tup

ATTACKER = "E"


class Defence(Enum):
    """A part of the protocol that can be left out."""

    KNOCK_NAMES = "both ids under the mac of the knock"
    KNOCK_CONNECTION = "the connection id under the mac of the knock"
    KNOCK_ONCE = "a knock counts once"
    CERTIFICATE_KEY = "the dialler compares the certificate's key with the id that it dialled"
    CERTIFICATE_SIGNATURE = "the listener signs the transcript"
    TRANSCRIPT = "the signed transcript has the key shares"
    GROUPS = "the transcript has the groups that were offered"
    HELLO_SIGNATURE = "the dialler signs the Hello"
    HELLO_LISTENER = "the Hello has the listener's id and certificate key"
    HELLO_BINDING = "the Hello has a value of TLS's secret"
    EPHEMERAL = "fresh exponents for each connection"
    HYBRID = "the hybrid group"


@dataclass(frozen=True, slots=True)
class Step:
    """One message taken: which, in words; the role after it; what it sends."""

    said: str
    role: Role
    sent: tuple[Term, ...]
    needs: Term | None  # what the attacker must be able to build; None for nothing


@dataclass(frozen=True, slots=True)
class Role:
    """One session of an honest node, and how far it has come."""

    name: str  # the node
    number: int
    peer: str  # "" for a listener that nothing has reached
    dials: bool
    without: frozenset[Defence]
    stage: int = 0
    cid: Term = ()
    nonce: Term = ()
    key: Term = ()  # of application data
    hybrid: bool = False
    hello: Term = field(default=(), repr=False)

    def has(self, defence: Defence) -> bool:
        return defence not in self.without

    @property
    def exponent(self) -> Term:
        return ("exp", f"{self.name}{self.number}") if self.has(Defence.EPHEMERAL) else ("sk", self.name)

    @property
    def secret(self) -> Term:
        """What this session sends as data."""
        return ("data", f"{self.name}{self.number}")

    @property
    def committed(self) -> bool:
        """True when it believes that the peer is the right one, and the handshake over."""
        return self.stage == 2

    # ---- messages

    def knock(self, sender: str, receiver: str, nonce: Term, cid: Term) -> Term:
        parts = [label("knock"), nonce]
        if self.has(Defence.KNOCK_NAMES):
            parts += [agent(sender), agent(receiver)]
        if self.has(Defence.KNOCK_CONNECTION):
            parts.append(cid)
        return mac(dh(("sk", sender), ("sk", receiver), False), tup(*parts))

    def initial(self, sender: str, receiver: str, nonce: Term, cid: Term, offered: Term) -> Term:
        return tup(agent(sender), nonce, cid, self.knock(sender, receiver, nonce, cid), offered)

    def transcript(self, offered: Term, answered: Term, cid: Term, certificate: Term) -> Term:
        if not self.has(Defence.TRANSCRIPT):
            return tup(label("transcript"), cid, certificate)
        if not self.has(Defence.GROUPS):
            offered, answered = (share(item[1], False) for item in (offered, answered))
        return tup(label("transcript"), offered, answered, cid, certificate)

    def flight(self, name: str, secret: Term, offered: Term, answered: Term, cid: Term) -> Term:
        """The listener's: its share in the clear, then its certificate and signature under the handshake's key."""
        certificate = agent(name)
        signed = self.transcript(offered, answered, cid, certificate)
        proof = sign(name, signed) if self.has(Defence.CERTIFICATE_SIGNATURE) else label("unsigned")
        key = kdf("handshake", secret, signed)
        return tup(answered, seal(key, tup(certificate, cid, proof)))

    def data_key(self, secret: Term, offered: Term, answered: Term, cid: Term, certificate: str) -> Term:
        return kdf("data", secret, self.transcript(offered, answered, cid, agent(certificate)))

    def hello_of(self, sender: str, listener: str, certificate: str, cid: Term, key: Term) -> Term:
        parts = [label("hello"), agent(sender), cid]
        if self.has(Defence.HELLO_LISTENER):
            parts += [agent(listener), agent(certificate)]
        if self.has(Defence.HELLO_BINDING):
            parts.append(kdf("binding", key))
        said = tup(*parts)
        return seal(key, tup(said, sign(sender, said)) if self.has(Defence.HELLO_SIGNATURE) else said)

    def welcome(self, listener: str, key: Term) -> Term:
        return seal(key, tup(label("welcome"), agent(listener)))

    # ---- what it does

    def begin(self) -> tuple[Role, tuple[Term, ...]]:
        """Send what comes first; a listener waits."""
        if not self.dials:
            return self, ()
        cid, nonce = ("cid", f"{self.name}{self.number}"), ("nonce", f"{self.name}{self.number}")
        role = replace(self, cid=cid, nonce=nonce, hybrid=self.has(Defence.HYBRID))
        offered = share(role.exponent, role.hybrid)
        return role, (self.initial(self.name, self.peer, nonce, cid, offered),)

    def steps(self, known: Knowledge, seen: frozenset[Term]) -> Iterator[Step]:
        """Every message that it would take now, whatever an attacker chooses; ``seen``: nonces that its node knows."""
        if self.dials and self.stage == 0:
            yield from self._take_flight(known)
        elif self.dials and self.stage == 1:
            done = replace(self, stage=2)
            yield Step("Welcome", done, (), self.welcome(self.peer, self.key))
        elif self.stage == 0:
            yield from self._take_initial(known, seen)
        elif self.stage == 1:
            done = replace(self, stage=2)
            sent = (self.welcome(self.name, self.key), seal(self.key, self.secret))
            yield Step(f"Hello of {self.peer}", done, sent, self.hello)

    def _take_flight(self, known: Knowledge) -> Iterator[Step]:
        offered = share(self.exponent, self.hybrid)
        names = [self.peer] if self.has(Defence.CERTIFICATE_KEY) else ["A", "B", ATTACKER]
        for answered in known.of_kind("share") + [share(item[1], False) for item in known.of_kind("share") if item[2]]:
            if answered[1] == self.exponent or (answered[2] and not self.hybrid):
                continue
            secret = dh(self.exponent, answered[1], answered[2])
            for name in names:
                key = self.data_key(secret, offered, answered, self.cid, name)
                role = replace(self, stage=1, key=key, hybrid=answered[2])
                hello = self.hello_of(self.name, self.peer, name, self.cid, key)
                needs = self.flight(name, secret, offered, answered, self.cid)
                yield Step(
                    f"flight with the certificate of {name} and the share {answered[1][1]}",
                    role,
                    (hello, seal(key, self.secret)),
                    needs,
                )

    def _take_initial(self, known: Knowledge, seen: frozenset[Term]) -> Iterator[Step]:
        shares = known.of_kind("share") + [share(item[1], False) for item in known.of_kind("share") if item[2]]
        for sender in ("A", "B", ATTACKER):
            for nonce in known.of_kind("nonce"):
                if sender == self.name or (nonce in seen and self.has(Defence.KNOCK_ONCE)):
                    continue
                for cid in known.of_kind("cid"):
                    for offered in shares:
                        yield self._answer(sender, nonce, cid, offered)

    def _answer(self, sender: str, nonce: Term, cid: Term, offered: Term) -> Step:
        answered = share(self.exponent, offered[2])
        secret = dh(self.exponent, offered[1], offered[2])
        key = self.data_key(secret, offered, answered, cid, self.name)
        role = replace(
            self,
            stage=1,
            peer=sender,
            cid=cid,
            nonce=nonce,
            key=key,
            hybrid=offered[2],
            hello=self.hello_of(sender, self.name, self.name, cid, key),
        )
        said = f"Initial of {sender} with the id {cid[1]}, the knock {nonce[1]} and the share {offered[1][1]}"
        return Step(
            said,
            role,
            (self.flight(self.name, secret, offered, answered, cid),),
            self.initial(sender, self.name, nonce, cid, offered),
        )
