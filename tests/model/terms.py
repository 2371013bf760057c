"""Terms of a Dolev-Yao attacker: what it can take apart, and what it can build from what it knows.

Cryptography is perfect: a term is a nested tuple, the first item its kind, and nothing but the rules here opens or
makes one. ``dh`` is the secret of two exponents and of whether the group was the hybrid one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Term = tuple[Any, ...]

PUBLIC = ("agent", "label")  # kinds that everyone can make


def agent(name: str) -> Term:
    return ("agent", name)


def label(text: str) -> Term:
    return ("label", text)


def tup(*parts: Term) -> Term:
    return ("tup", *parts)


def mac(key: Term, message: Term) -> Term:
    return ("mac", key, message)


def seal(key: Term, message: Term) -> Term:
    return ("seal", key, message)


def sign(name: str, message: Term) -> Term:
    return ("sign", ("sk", name), message)


def kdf(text: str, *parts: Term) -> Term:
    return ("kdf", label(text), *parts)


def share(exponent: Term, hybrid: bool) -> Term:
    """The public half of an exponent: with ML-KEM's part, or X25519's alone."""
    return ("share", exponent, hybrid)


def dh(one: Term, other: Term, hybrid: bool) -> Term:
    return ("dh", *sorted((one, other)), hybrid)


class Knowledge:
    """What the attacker knows, taken apart as far as that goes; immutable."""

    __slots__ = ("quantum", "terms")

    def __init__(self, terms: Iterable[Term] = (), *, quantum: bool = False) -> None:
        self.quantum = quantum
        self.terms: frozenset[Term] = self._opened(frozenset(terms))

    def plus(self, *terms: Term, quantum: bool | None = None) -> Knowledge:
        """Return this and more."""
        return Knowledge(self.terms | frozenset(terms), quantum=self.quantum if quantum is None else quantum)

    def _opened(self, terms: frozenset[Term]) -> frozenset[Term]:
        """Take pairs, signed messages and what is sealed with keys that can be built apart, until nothing is new."""
        self.terms = terms
        while True:
            new: set[Term] = set()
            for term in self.terms:
                if term[0] == "tup":
                    new.update(term[1:])
                elif term[0] == "sign" or (term[0] == "seal" and self.builds(term[1])):
                    new.add(term[2])
            if new <= self.terms:
                return self.terms
            self.terms |= new

    def builds(self, term: Term) -> bool:
        """Return whether the attacker can make this term."""
        if term in self.terms or term[0] in PUBLIC:
            return True
        kind = term[0]
        if kind in ("tup", "kdf"):
            return all(map(self.builds, term[1:]))
        if kind in ("mac", "seal", "sign"):
            return self.builds(term[1]) and self.builds(term[2])
        if kind == "share":
            return term[1] in self.terms or (not term[2] and share(term[1], True) in self.terms)
        if kind == "dh":
            return self._has_secret(term)
        return False

    def _has_secret(self, term: Term) -> bool:
        _, one, other, hybrid = term
        if self.quantum and not hybrid:
            return self._sees(one, False) and self._sees(other, False)
        return (one in self.terms and self._sees(other, hybrid)) or (other in self.terms and self._sees(one, hybrid))

    def _sees(self, exponent: Term, hybrid: bool) -> bool:
        return self.builds(share(exponent, hybrid)) or exponent[0] == "sk"  # a node's id is its public key

    def of_kind(self, kind: str) -> list[Term]:
        """Return the known terms of a kind, in a fixed order."""
        return sorted((term for term in self.terms if term[0] == kind), key=repr)
