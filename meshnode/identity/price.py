"""What an id costs: a few hundred keys are tried until the id passes a memory-hard test that anyone repeats in 50 us.

A DHT stores a record at the nodes whose ids are nearest to its key. Where ids are free, eight that are nearer than any
honest node's take a second to find, and then they are all that a lookup asks. An id that has a price costs the same
again for every bit that it shall share with a key, so eight such ids in a mesh of 1,000 nodes cost eight thousand
prices (docs/explanation/security.md has the sum). The price is in the key itself: nothing is added to any message, it
is paid once, and there is nothing to steal or renew. Ids without it are served as well; they only hold no place that
those with it have.

The test is Argon2id (RFC 9106) over the id, with 64 kB, so that hashing in hardware gains little; its salt is fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from nacl.bindings import crypto_pwhash_alg, crypto_pwhash_ALG_ARGON2ID13

from meshnode.base.limits import ID_PRICE_BITS, MAX_PRICED_IDS
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId

SALT = b"meshnode id cost"  # 16 bytes
PASSES = 1
MEMORY = 65_536
DIGEST = 16  # bytes, the shortest that libsodium makes


def digest_of(node_id: NodeId) -> bytes:
    """Return the 16 bytes that decide whether an id has its price; 50 us of CPU."""
    digest: bytes = crypto_pwhash_alg(DIGEST, node_id.raw, SALT, PASSES, MEMORY, crypto_pwhash_ALG_ARGON2ID13)
    return digest


def is_enough(digest: bytes) -> bool:
    """Return whether a digest begins with ``ID_PRICE_BITS`` zero bits."""
    return int.from_bytes(digest, "big") >> (8 * DIGEST - ID_PRICE_BITS) == 0


@lru_cache(maxsize=MAX_PRICED_IDS)
def has_price(node_id: NodeId) -> bool:
    """Return whether an id was paid for; the answers for ``MAX_PRICED_IDS`` ids are remembered."""
    return is_enough(digest_of(node_id))


def make_identity(generate: Callable[[], Identity] = Identity.generate) -> Identity:
    """Return the first key pair of ``generate`` whose id has its price: 0.3 s of CPU on average, seldom over 1.4 s."""
    while True:
        identity = generate()
        if is_enough(digest_of(identity.id)):
            return identity
