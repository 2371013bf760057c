"""What a person does with the mesh of a home: make it, invite to it, join it, grant and revoke.

All of it works without a node that runs, and without any other node. ``wall`` is Unix seconds, ``entropy`` makes keys.
"""

from __future__ import annotations

from pathlib import Path

from meshnode.base.clock import Entropy
from meshnode.base.limits import MAX_CHAIN, MAX_GRACE_S, MAX_INVITE_USES, MAX_LINEAGE, MAX_REASON
from meshnode.errors import ConfigError, GrantError
from meshnode.identity.keyfile import load as load_key
from meshnode.identity.keyfile import save as save_key
from meshnode.identity.keys import Identity
from meshnode.identity.mesh_file import mesh_key_bytes, mesh_key_text
from meshnode.identity.node_id import NodeId, quoted
from meshnode.identity.price import make_identity
from meshnode.trust.authority import Issuer
from meshnode.trust.chain import SKEW_MS, Chain, Standing, verify_chain
from meshnode.trust.grant import Delegation, open_grant
from meshnode.trust.home_mesh import (
    AUTHORITY_FILE,
    MESH_FILE,
    HomeMesh,
    drop_rotation,
    load_authority,
    load_chain,
    load_mesh,
    load_rotation,
    read_chain,
    save_authority,
    save_chain,
    save_mesh,
    save_rotation,
)
from meshnode.trust.names import Names
from meshnode.trust.renewal import lineage_of
from meshnode.trust.revocation import Revocation, parse_target, sign_revocation
from meshnode.trust.rotation import Rotation, sign_rotation
from meshnode.trust.succession import (
    is_succession,
    open_links,
    open_succession,
    sign_succession,
    without_succession,
)
from meshnode.trust.ticket import MAX_MESH_NAME, MAX_SEED_TEXT, Ticket, make_ticket, redeem

OPERATOR_ROLE = "admin"
OLD_KEY, NEW_KEY = "key.old", "key.new"
MAX_GRACE_DAYS = round(MAX_GRACE_S / 86_400)
OWN_LIFETIME_S = 365 * 86_400.0  # of the grant that the home of an authority gives its own node


def create_mesh(
    home: Path, name: str, node: Identity, passphrase: str | None, wall: float, entropy: Entropy
) -> HomeMesh:
    """Make a mesh in a home: its secret, its authority, and this node's grant (role ``admin``, may give and renew).

    Raises ConfigError: the home is in a mesh, or the name is none. Raises KeyFileError.
    """
    if not 0 < len(name) <= MAX_MESH_NAME or not name.isprintable():
        raise ConfigError(f"{name[:80]!r} is no name for a mesh", hint=f"1 to {MAX_MESH_NAME} visible characters")
    _check_free(home)
    authority = Identity(entropy(32))
    mesh = HomeMesh(name, mesh_key_text(entropy(32)), authority.id)
    save_authority(home, authority, passphrase)  # which leaves nothing when it fails
    try:
        save_chain(home, own_grant(authority, node.id, wall, entropy))
        save_mesh(home, mesh)
        drop_rotation(home)  # of a mesh that this home has left
    except BaseException:  # else this home could make no mesh any more
        if not (home / MESH_FILE).exists():
            (home / AUTHORITY_FILE).unlink(missing_ok=True)
        raise
    return mesh


def own_grant(
    authority: Identity, node: NodeId, wall: float, entropy: Entropy, lineage: tuple[bytes, ...] = ()
) -> Chain:
    """Return the grant of the node in an authority's home: it may give and renew all, for a year."""
    now = round(wall * 1000)
    expires = now + round(OWN_LIFETIME_S * 1000)
    everything = Delegation(None, None, MAX_CHAIN - 1, expires, renews=True)
    return Issuer(authority).issue(
        node,
        roles=[OPERATOR_ROLE],
        not_before=now,
        expires=expires,
        delegation=everything,
        lineage=lineage,
        entropy=entropy,
    )


def renew_own(home: Path, node: NodeId, authority: Identity, wall: float, entropy: Entropy) -> bool:
    """Renew the grant of an authority's own node, when half of its time is over; returns whether it was."""
    mesh = load_mesh(home)
    if mesh is None or mesh.authority != authority.id:
        return False
    try:
        standing = verify_chain(load_chain(home), node, mesh.authority, wall)
    except GrantError:
        pass
    else:
        if standing.part_over(wall) < 0.5:
            return False
    before = load_chain(home)
    succession = before[len(without_succession(before)) :]
    old = tuple(bytes(open_succession(link).issuer) for link in succession if open_succession(link).subject == node)
    save_chain(home, (*own_grant(authority, node, wall, entropy, old), *succession))
    return True


def _check_free(home: Path) -> None:
    found = load_mesh(home)
    if found is not None:
        hint = f"use another --home, or remove {home / MESH_FILE} to leave that mesh"
        raise ConfigError(f"this home is in the mesh {found.name} already", hint=hint)
    if (home / AUTHORITY_FILE).exists():
        raise ConfigError(f"{home / AUTHORITY_FILE} is the key of an authority", hint="move it away first")


def mesh_of(home: Path) -> HomeMesh:
    """Return the mesh of a home.

    Raises ConfigError when it is in none.
    """
    found = load_mesh(home)
    if found is None:
        hint = "`meshnode mesh create NAME` makes one here, `meshnode join TICKET` joins one"
        raise ConfigError("this home is in no private mesh", hint=hint)
    return found


def secret_of(home: Path, mesh: HomeMesh, wall: float) -> HomeMesh:
    """Return the mesh with the secret that its nodes seal with now: that of a rotation that has begun, or its own."""
    rotation = load_rotation(home, mesh.authority)
    if rotation is None or not rotation.has_begun(wall):
        return mesh
    return HomeMesh(mesh.name, mesh_key_text(rotation.key), mesh.authority, mesh.seeds)


def rotate_mesh(
    home: Path, mesh: HomeMesh, authority: Identity, *, delay_s: float, overlap_s: float, wall: float, entropy: Entropy
) -> Rotation:
    """Sign the next secret of a mesh: sealed with in ``delay_s`` seconds, alone after ``overlap_s`` more.

    Raises ConfigError: either is too long; or an earlier rotation is not over, unless that begins so late that a wrong
    clock has dated it.
    """
    if max(delay_s, overlap_s) > MAX_GRACE_S:
        raise ConfigError("the old secret would be taken for too long", hint=f"at most {MAX_GRACE_DAYS} days")
    if authority.id != mesh.authority:
        raise ConfigError("that is the key of another mesh's authority", hint="check MESHNODE_AUTHORITY_KEY")
    earlier = load_rotation(home, mesh.authority)
    if earlier is not None and not earlier.is_over(wall) and earlier.has_begun(wall + MAX_GRACE_S):
        raise ConfigError("the mesh's secret is being rotated already", hint="wait until that is over")
    now = round(wall * 1000)
    serial = now if earlier is None else max(now, earlier.serial + 1)
    begins = now + round(delay_s * 1000)
    ends = begins + round(overlap_s * 1000)
    return sign_rotation(authority, serial=serial, key=entropy(32), begins=begins, ends=ends)


def keep_rotation(home: Path, rotation: Rotation, wall: float) -> None:
    """Write a rotation into a home whose node does not run; the secret of an earlier one becomes the home's own."""
    mesh = load_mesh(home)
    if mesh is not None:
        save_mesh(home, secret_of(home, mesh, wall))
    save_rotation(home, rotation)


def issuer_of(home: Path, node: Identity | None, passphrase: str | None, given: str | None) -> tuple[HomeMesh, Issuer]:
    """Return the mesh of a home and what makes grants in it: the authority's key, or the node's as a delegate's.

    Raises ConfigError: there is neither. Raises KeyFileError.
    """
    mesh = mesh_of(home)
    authority = load_authority(home, passphrase, given)
    if authority is not None:
        if authority.id != mesh.authority:
            raise ConfigError("that is the key of another mesh's authority", hint="check MESHNODE_AUTHORITY_KEY")
        return mesh, Issuer(authority)
    chain = load_chain(home)
    delegate = Issuer(node, chain) if node is not None and chain else None
    if delegate is None or delegate.may is None:
        hint = "run this where the mesh was made, or with a grant that allows it (`meshnode grant issue --delegate`)"
        raise ConfigError(f"this home may give no grants in the mesh {mesh.name}", hint=hint)
    return mesh, delegate


def invite(
    mesh: HomeMesh,
    issuer: Issuer,
    *,
    roles: tuple[str, ...],
    services: Names,
    seeds: tuple[str, ...],
    ticket_s: float,
    lifetime_s: float,
    uses: int,
    wall: float,
    entropy: Entropy,
) -> Ticket:
    """Return a ticket that expires in ``ticket_s`` seconds; what joins with it has its grant for ``lifetime_s``.

    Raises ConfigError, and GrantError when this issuer may not give that.
    """
    if not 0 <= uses <= MAX_INVITE_USES:
        raise ConfigError(f"a ticket is for 1 to {MAX_INVITE_USES} nodes", hint="0 is for any number")
    for seed in seeds:
        if len(seed) > MAX_SEED_TEXT:  # and no node could read the ticket
            hint = f"name the node by its address, or by a shorter name: {MAX_SEED_TEXT} characters in all"
            raise ConfigError(f"the seed {quoted(seed)} is too long for a ticket", hint=hint)
    now = round(wall * 1000)
    expires, until = now + round(max(lifetime_s, ticket_s) * 1000), now + round(ticket_s * 1000)
    return make_ticket(
        issuer,
        mesh.name,
        mesh_key_bytes(mesh.key),
        mesh.authority,
        seeds,
        roles=roles,
        services=services,
        now=now,
        until=until if issuer.may is None else min(until, issuer.may.until),
        expires=expires if issuer.latest is None else min(expires, issuer.latest),
        uses=uses,
        entropy=entropy,
    )


def join(home: Path, ticket: Ticket, node: Identity, wall: float, entropy: Entropy) -> Standing:
    """Take part in a mesh: write its secret and a grant for this home's node, made with the ticket, at once.

    A home that is in the same mesh gets a new grant. Raises ConfigError: it is in another one. Raises GrantError: the
    ticket has expired, or does not hold. Raises KeyFileError.
    """
    found = load_mesh(home)
    if found is not None and found.authority != ticket.authority:
        _check_free(home)
    chain = redeem(ticket, node.id, wall, entropy)
    standing = verify_chain(chain, node.id, ticket.authority, wall)
    mesh = HomeMesh(ticket.mesh, mesh_key_text(ticket.secret), ticket.authority, ticket.seeds)
    save_chain(home, chain)
    save_mesh(home, mesh)
    if found is None or found.key != mesh.key:  # else what the home knows follows the secret in the ticket
        drop_rotation(home)
    return standing


def grant(
    issuer: Issuer,
    subject: NodeId,
    *,
    roles: tuple[str, ...],
    services: Names,
    lifetime_s: float,
    depth: int,
    renews: bool,
    wall: float,
    entropy: Entropy,
) -> Chain:
    """Return the chain for a node whose key is known.

    With a ``depth`` it may give as much as it has to others, and these again to others, so many grants in a row.

    Raises GrantError when this issuer may not give that.
    """
    now = round(wall * 1000)
    expires = now + round(lifetime_s * 1000)
    if issuer.latest is not None:
        expires = min(expires, issuer.latest)
    may = Delegation(roles, services, depth, expires, renews=renews) if depth else None
    return issuer.issue(
        subject, roles=roles, services=services, not_before=now, expires=expires, delegation=may, entropy=entropy
    )


def renewed(issuer: Issuer, file: Path, *, lifetime_s: float, wall: float, entropy: Entropy) -> tuple[NodeId, Chain]:
    """Return the node of a grant in a file, and that grant for a later time.

    Raises ConfigError, GrantError.
    """
    chain = read_chain(file)
    if not chain:
        raise ConfigError(f"there is no {file}", hint="`meshnode grant issue ID --out FILE` makes it")
    old = open_grant(without_succession(chain)[-1])
    return old.subject, grant(
        issuer,
        old.subject,
        roles=old.roles,
        services=old.services,
        lifetime_s=lifetime_s,
        depth=old.delegation.depth if old.delegation is not None else 0,
        renews=old.delegation is not None and old.delegation.renews,
        wall=wall,
        entropy=entropy,
    )


def revoke(
    home: Path, target: str, node: Identity | None, passphrase: str | None, given: str | None, reason: str, wall: float
) -> Revocation:
    """Return a statement that a key or a grant is revoked: by the authority, a delegate, or a node about itself.

    Raises ConfigError: this home may not revoke that. Raises InvalidId, KeyFileError.
    """
    mesh, named = mesh_of(home), parse_target(target)
    if named == bytes(mesh.authority):
        raise ConfigError("an authority cannot be revoked", hint="make a new mesh (`meshnode mesh create`)")
    if len(reason) > MAX_REASON or not reason.isprintable():
        raise ConfigError("that is no reason", hint=f"at most {MAX_REASON} visible characters")
    authority, now = load_authority(home, passphrase, given), round(wall * 1000)
    if authority is not None:
        if authority.id != mesh.authority:
            raise ConfigError("that is the key of another mesh's authority", hint="check MESHNODE_AUTHORITY_KEY")
        return sign_revocation(authority, named, time=now, reason=reason)
    chain = load_chain(home)
    itself = node is not None and named == bytes(node.id)
    if node is None or not chain or not (itself or open_links(chain)[-1].delegation):
        hint = "run this where the mesh was made; the lost machine's own home can revoke itself"
        raise ConfigError(f"this home may not revoke that in the mesh {mesh.name}", hint=hint)
    return sign_revocation(node, named, time=now, reason=reason, chain=chain)


def rotate(
    home: Path, node: Identity, passphrase: str | None, grace_s: float, wall: float, entropy: Entropy
) -> tuple[Identity, int]:
    """Replace the key of a home's node; returns the new one, and until when the old one counts (Unix milliseconds).

    Both keys are on the disk, the new one as ``key.new``, before the succession behind the grants names it; then that
    becomes ``key``. What a crash leaves holds for the key that is there, and the next call ends what was begun: a
    second successor would be disputed, and both refused. Raises ConfigError, GrantError: no grant is this key's own.
    """
    if grace_s > MAX_GRACE_S:
        raise ConfigError("the old key would count for too long", hint=f"at most {MAX_GRACE_DAYS} days")
    chain, mesh = load_chain(home), mesh_of(home)
    link = open_succession(chain[-1]) if chain and is_succession(chain[-1]) else None
    if link is not None and link.issuer == node.id and (home / NEW_KEY).exists():
        begun = load_key(home / NEW_KEY, passphrase)
        if begun.id == link.subject:
            (home / NEW_KEY).replace(home / "key")
            return begun, link.expires
    if link is not None and link.subject == node.id != open_grant(without_succession(chain)[-1]).subject:
        raise ConfigError(
            "this key has replaced another one, and has no grant of its own yet",
            hint="it gets one when its grant is renewed; `meshnode grant issue` where the mesh was made is sooner",
        )
    standing = verify_chain(without_succession(chain), node.id, mesh.authority, wall)
    if len(lineage_of(standing)) >= MAX_LINEAGE:
        raise ConfigError(
            "this key's grants name as many keys before it as they can: those of a new one would not be renewed",
            hint="`meshnode grant issue` where the mesh was made, and `meshnode grant install` here, first",
        )
    now = round(wall * 1000)
    new, ends = make_identity(lambda: Identity(entropy(32))), now + round(grace_s * 1000)
    save_key(home / NEW_KEY, new, passphrase)
    save_key(home / OLD_KEY, node, passphrase)
    save_chain(home, (*without_succession(chain), sign_succession(node, new, time=now, ends=ends)))
    (home / NEW_KEY).replace(home / "key")
    return new, ends


def has_successor(home: Path, node: NodeId) -> bool:
    """Return whether the grants of a home say that another key has replaced a node's."""
    try:
        chain = load_chain(home)
        return bool(chain) and is_succession(chain[-1]) and open_succession(chain[-1]).issuer == node
    except (ConfigError, GrantError):
        return False


def drop_old_key(home: Path, wall: float) -> bool:
    """Remove the key that ``rotate`` has replaced when its grace period is over; return whether it was."""
    old = home / OLD_KEY
    if not old.exists():
        return False
    chain = load_chain(home)
    if not chain or not is_succession(chain[-1]) or wall * 1000 <= open_succession(chain[-1]).expires + SKEW_MS:
        return False
    old.unlink(missing_ok=True)
    return True


def install(home: Path, file: Path, node: NodeId, wall: float) -> Standing:
    """Put a grant from a file into a home.

    Raises ConfigError, KeyFileError, GrantError: it does not hold for it.
    """
    chain = read_chain(file)
    if not chain:
        raise ConfigError(f"there is no {file}", hint="`meshnode grant issue ID --out FILE` makes it")
    mesh = load_mesh(home)
    authority = mesh.authority if mesh is not None else open_grant(chain[0]).issuer
    standing = verify_chain(chain, node, authority, wall)
    save_chain(home, chain)
    return standing
