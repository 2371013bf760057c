"""Tickets: one line of text by which a new node joins a private mesh, without asking any other node.

A ticket holds the mesh's secret, the key of its authority, seeds, and an *invite key* with the chain of grants that
lets it make grants: of these roles only, until the ticket expires, for so many keys. The newcomer makes its own key and
signs a grant for it with the invite key, at once and offline. So a ticket is a secret: its holder can join.
"""

from __future__ import annotations

import base64
import hashlib

from meshnode.base.clock import Entropy
from meshnode.base.limits import MAX_CHAIN, MAX_GRANT, MAX_TICKET, MAX_TICKET_SEEDS
from meshnode.base.value import value
from meshnode.base.wire import WireError, as_bytes, as_list, as_number, decode, encode
from meshnode.errors import ConfigError, GrantError, GrantReject
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import KEY_LENGTH, NodeId
from meshnode.trust.authority import Issuer
from meshnode.trust.chain import Chain, Standing, verify_chain
from meshnode.trust.grant import Delegation, open_grant

PREFIX = "mesh-"
CHECK_LENGTH = 4
VERSION = 1
MAX_MESH_NAME = 64
MAX_SEED_TEXT = 128
ASK_AGAIN = "ask for a new one: `meshnode invite`"
TICKET_HINT = "copy it again, all of it; it begins with mesh- and is one line"


@value
class Ticket:
    """An invitation.

    Attributes:
        mesh: The mesh's name, for people.
        secret: The mesh key, 32 bytes.
        authority: The key at which all grants of the mesh begin.
        seeds: Nodes to begin with, each ``ID@HOST:PORT``.
        invite: The seed of the invite key.
        chain: The grants from the authority to the invite key.
    """

    mesh: str
    secret: bytes
    authority: NodeId
    seeds: tuple[str, ...]
    invite: bytes
    chain: Chain

    @property
    def delegation(self) -> Delegation:
        """What the ticket lets its holder give itself."""
        found = open_grant(self.chain[-1]).delegation
        assert found is not None  # a parsed ticket has one
        return found


def make_ticket(
    issuer: Issuer,
    mesh: str,
    secret: bytes,
    authority: NodeId,
    seeds: tuple[str, ...],
    *,
    roles: tuple[str, ...],
    services: tuple[str, ...] | None,
    now: int,
    until: int,
    expires: int,
    uses: int,
    entropy: Entropy,
) -> Ticket:
    """Return a ticket that an authority or a delegate gives; times are Unix milliseconds.

    ``until`` is when the ticket expires, ``expires`` when the grants do that are made with it. Raises GrantError.
    """
    invite = Identity(entropy(KEY_LENGTH))
    delegation = Delegation(roles, services, 1, until, uses)
    chain = issuer.issue(
        invite.id, services=(), not_before=now, expires=expires, delegation=delegation, entropy=entropy
    )
    return Ticket(mesh, secret, authority, seeds, invite.seed, chain)


def redeem(ticket: Ticket, subject: NodeId, wall: float, entropy: Entropy) -> Chain:
    """Return the grants that a ticket gives to ``subject``, all that it can.

    Raises GrantError: it has expired.
    """
    may, invite = ticket.delegation, Identity(ticket.invite)
    standing = _invitation(ticket, invite.id, wall)
    now = max(round(wall * 1000), standing.not_before)  # this clock may be behind the inviter's
    if now > may.until:
        raise GrantError(GrantReject.TOO_LATE, "this ticket has expired", hint=ASK_AGAIN)
    return Issuer(invite, ticket.chain).issue(
        subject,
        roles=may.roles or (),
        services=may.services,
        not_before=now,
        expires=standing.expires,
        entropy=entropy,
    )


def _invitation(ticket: Ticket, invite: NodeId, wall: float) -> Standing:
    """Return what the invite key may give. Raises GrantError, in words about the ticket."""
    try:
        return verify_chain(ticket.chain, invite, ticket.authority, wall, of_ticket=True)
    except GrantError as error:
        said = {
            GrantReject.NOT_YET: ("this clock is before the time at which the ticket was made", "set the clock"),
            GrantReject.EXPIRED: ("this ticket has expired", ASK_AGAIN),
        }
        message, hint = said.get(error.reason, (f"the ticket does not hold: {error.reason.value}", ASK_AGAIN))
        raise GrantError(error.reason, message, hint=hint) from error


def format_ticket(ticket: Ticket) -> str:
    """Return the ticket as one line: ``mesh-``, then lowercase base32 of checksum and CBOR."""
    body = encode(
        [
            VERSION,
            ticket.mesh,
            ticket.secret,
            bytes(ticket.authority),
            list(ticket.seeds),
            ticket.invite,
            list(ticket.chain),
        ]
    )
    return PREFIX + base64.b32encode(_check(body) + body).decode().rstrip("=").lower()


def parse_ticket(text: str) -> Ticket:
    """Return the ticket in a text; white space in it, capitals and the ends of lines do not matter.

    The grants in it are parsed, and verified when it is used. Raises ConfigError for all other text.
    """
    text = "".join(text[: 2 * MAX_TICKET].split()).lower()
    if not text.startswith(PREFIX) or len(text) > MAX_TICKET:
        raise ConfigError("that is no ticket", hint=TICKET_HINT)
    data = text[len(PREFIX) :]
    try:
        raw = base64.b32decode(data.upper() + "=" * (-len(data) % 8))
        check, body = raw[:CHECK_LENGTH], raw[CHECK_LENGTH:]
        if check != _check(body):
            raise WireError("checksum")
        return _parse(as_list(decode(body, MAX_TICKET), 7))
    except (ValueError, GrantError) as error:
        raise ConfigError("the ticket is damaged", hint=TICKET_HINT) from error


def _parse(fields: list[object]) -> Ticket:
    if len(fields) != 7:
        raise WireError("wrong fields")
    version, mesh, secret, authority, seeds, invite, chain = fields
    as_number(version, VERSION, VERSION)
    found = Ticket(
        _text(mesh, MAX_MESH_NAME),
        as_bytes(secret, 32, 32),
        NodeId(as_bytes(authority, KEY_LENGTH, KEY_LENGTH)),
        tuple(_text(seed, MAX_SEED_TEXT) for seed in as_list(seeds, MAX_TICKET_SEEDS)),
        as_bytes(invite, KEY_LENGTH, KEY_LENGTH),
        tuple(as_bytes(item, 1, MAX_GRANT) for item in as_list(chain, MAX_CHAIN - 1)),
    )
    if not found.chain or (may := open_grant(found.chain[-1]).delegation) is None or may.roles is None:
        raise WireError("no invitation")
    return found


def _text(item: object, most: int) -> str:
    if not isinstance(item, str) or not 0 < len(item) <= most or not item.isprintable():
        raise WireError("wrong text")
    return item


def _check(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=CHECK_LENGTH, person=b"mesh-ticket").digest()
