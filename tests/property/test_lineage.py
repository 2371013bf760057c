"""Renewals and replaced keys in any order: a node that has seen none of them knows what the last grants rest on."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import GrantError, GrantReject
from meshnode.identity.keys import Identity
from meshnode.trust.authority import Issuer
from meshnode.trust.chain import Chain, Standing, verify_chain
from meshnode.trust.grant import Delegation, grant_id
from meshnode.trust.renewal import Renewer
from meshnode.trust.revocation import sign_revocation
from meshnode.trust.revocations import Revocations
from meshnode.trust.succession import sign_succession, without_succession
from meshnode.trust.ticket import make_ticket, redeem

AUTHORITY, OTHER = Identity(b"A" * 32), Identity(b"o" * 32)
RENEWERS = [Identity(bytes([n]) * 32) for n in (1, 2)]
MS, DAY = 1_700_000_000_000, 86_400_000
LIFE = 10 * DAY


def _renewing(renewer: Identity) -> Chain:
    may = Delegation(None, None, 3, MS + 900 * DAY, renews=True)
    said = {"not_before": MS, "expires": MS + 900 * DAY, "delegation": may, "entropy": bytes}
    return Issuer(AUTHORITY).issue(renewer.id, **said)  # type: ignore[arg-type]


WAYS = ["authority", "ticket", "renewer", "renewer's ticket"]


class Holder:
    """A node, honest or not, and all that its grants owe something to."""

    def __init__(self, way: str) -> None:
        self.now = MS
        self.keys = [Identity(bytes([50]) * 32)]
        self.link: tuple[bytes, ...] = ()
        if way == "authority":
            said = {"roles": ["web"], "not_before": MS, "expires": MS + LIFE, "entropy": bytes}
            self.grants = Issuer(AUTHORITY).issue(self.key.id, **said)  # type: ignore[arg-type]
            self.owed = [bytes.fromhex(grant_id(self.grants[-1]))]
            return
        if way == "renewer":
            said = {"roles": ["web"], "not_before": MS, "expires": MS + LIFE, "entropy": bytes}
            self.grants = Issuer(RENEWERS[0], _renewing(RENEWERS[0])).issue(self.key.id, **said)  # type: ignore[arg-type]
            self.owed = [bytes.fromhex(grant_id(self.grants[-1]))]
            return
        inviter = Issuer(AUTHORITY) if way == "ticket" else Issuer(RENEWERS[0], _renewing(RENEWERS[0]))
        said = {"roles": ("web",), "services": None, "now": MS, "until": MS + DAY, "expires": MS + LIFE, "uses": 0}
        ticket = make_ticket(inviter, "field", bytes(32), AUTHORITY.id, (), entropy=bytes, **said)  # type: ignore[arg-type]
        self.grants = redeem(ticket, self.key.id, MS / 1000, bytes)
        self.owed = [bytes.fromhex(grant_id(ticket.chain[-1]))]

    @property
    def key(self) -> Identity:
        return self.keys[-1]

    def standing(self, held: Revocations | None = None) -> Standing:
        revoked = (held or Revocations(AUTHORITY.id)).covers
        return verify_chain((*self.grants, *self.link), self.key.id, AUTHORITY.id, self.now / 1000, revoked)

    def step(self, what: str) -> None:
        has_own = self.standing().former is None or self.standing().keys[-3] == self.key.id
        if what == "replace" and has_own and len(self.keys) < 7:
            new = Identity(bytes([50 + len(self.keys)]) * 32)
            self.link = (sign_succession(self.key, new, time=self.now, ends=self.now + DAY),)
            self.keys.append(new)
        elif what == "hide" and has_own:
            self.link = ()
        elif what in ("renew", "renew elsewhere"):
            self.now += LIFE // 2
            renewer = RENEWERS[what == "renew elsewhere"]
            own = verify_chain(_renewing(renewer), renewer.id, AUTHORITY.id, self.now / 1000)
            self.grants = without_succession(Renewer(renewer, own).renew(self.standing(), self.now / 1000, bytes))


def _holds(holder: Holder, target: bytes) -> bool:
    held = Revocations(AUTHORITY.id)
    held.add(sign_revocation(AUTHORITY, target, time=MS), holder.now / 1000)
    try:
        holder.standing(held)
    except GrantError as error:
        assert error.reason is GrantReject.REVOKED
        return False
    return True


@given(
    st.sampled_from(WAYS),
    st.lists(st.sampled_from(["renew", "renew elsewhere", "replace", "hide"]), max_size=12),
)
@settings(max_examples=200, deadline=None)
def test_whatever_is_renewed_replaced_and_hidden_each_thing_that_grants_owe_something_to_takes_them(
    way: str, steps: list[str]
) -> None:
    holder = Holder(way)
    for step in steps:
        holder.step(step)
        assert _holds(holder, bytes(OTHER.id))
        for target in (*holder.owed, *(bytes(key.id) for key in holder.keys)):
            assert not _holds(holder, target)


@given(
    st.sampled_from(WAYS),
    st.lists(st.sampled_from(["renew", "renew elsewhere", "replace", "hide"]), max_size=12),
)
@settings(max_examples=200, deadline=None)
def test_a_revoked_renewer_takes_what_it_gave_last_and_nothing_that_another_one_has_renewed_since(
    way: str, steps: list[str]
) -> None:
    holder, giver = Holder(way), RENEWERS[0] if way.startswith("renewer") else AUTHORITY
    for step in steps:
        before = holder.grants
        holder.step(step)
        if holder.grants != before:
            giver = RENEWERS[step == "renew elsewhere"]
        for renewer in RENEWERS:
            assert _holds(holder, bytes(renewer.id)) == (renewer != giver)
