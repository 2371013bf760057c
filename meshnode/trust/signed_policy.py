"""Policies that a mesh's authority has signed: what every node applies, wherever it got them from.

An envelope (``identity/envelope.py``) of ``DOMAIN`` around the array ``[1, authority, version, text]``: the policy's
number and its TOML. Of two policies the one with the higher version counts, for ever: an older one is refused by all
that have seen a newer one.
"""

from __future__ import annotations

from meshnode.base.limits import MAX_POLICY
from meshnode.base.value import value
from meshnode.errors import ConfigError
from meshnode.identity.envelope import EnvelopeError, open_envelope, sign_envelope, verify_envelope
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.trust.policy import MAX_VERSION, Policy, parse_policy

DOMAIN = b"meshnode policy v1\x00"
FORMAT = 1
MAX_SIGNED = MAX_POLICY + 128


@value
class SignedPolicy:
    """A policy with the bytes that prove it."""

    policy: Policy
    encoded: bytes

    @property
    def version(self) -> int:
        """Its number, from 1."""
        return self.policy.version


def sign_policy(authority: Identity, text: bytes, file: str = "policy") -> SignedPolicy:
    """Sign the text of a policy.

    Raises ConfigError: it is wrong, or its version is not at least 1.
    """
    policy = parse_policy(text, file)
    if policy.version < 1:
        hint = "version = 1, and one more each time: a node takes only a higher one than it has"
        raise ConfigError(f"{file} has no version", hint=hint)
    encoded = sign_envelope(authority, DOMAIN, [FORMAT, bytes(authority.id), policy.version, text], MAX_SIGNED)
    return SignedPolicy(policy, encoded)


def signed_version(encoded: bytes, authority: NodeId) -> int:
    """Return the version that signed bytes carry, once the authority's signature has been verified.

    The rules inside are not read. Raises ConfigError: they are no policy, or another key signed them.
    """
    return _verified(encoded, authority)[0]


def open_policy(encoded: bytes, authority: NodeId) -> SignedPolicy:
    """Verify and read a signed policy.

    Raises ConfigError.
    """
    version, text = _verified(encoded, authority)
    policy = parse_policy(text, "the mesh's policy")
    if policy.version != version:
        raise ConfigError("the signed policy says two versions", hint="sign it again")
    return SignedPolicy(policy, encoded)


def _verified(encoded: bytes, authority: NodeId) -> tuple[int, bytes]:
    try:
        item = open_envelope(encoded, MAX_SIGNED)
    except EnvelopeError as error:
        raise ConfigError("this is no signed policy", hint="`meshnode policy sign` makes one") from error
    if not isinstance(item, list) or len(item) != 4 or item[0] != FORMAT or item[1] != bytes(authority):
        raise ConfigError("this is no policy of this mesh's authority", hint="`meshnode policy sign` makes one")
    version, text = item[2:]
    if type(version) is not int or not 1 <= version <= MAX_VERSION or not isinstance(text, bytes):
        raise ConfigError("this is no signed policy", hint="`meshnode policy sign` makes one")
    if not verify_envelope(authority, DOMAIN, encoded):
        raise ConfigError("the authority did not sign this policy", hint="get it again, from the authority")
    return version, text
