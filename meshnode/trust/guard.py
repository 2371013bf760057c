"""The guard of one node: the one place that decides what a peer may do here, and that can explain it.

Three layers, all of which must agree: the lists of this node (``--allow`` of the node, of its relay, of each service),
the policy that the mesh's authority signed, and this node's own. So each layer only narrows what the others allow.
Every door asks ``ask``; answers are kept until something changes. Sans I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from meshnode.base.limits import MAX_DECISIONS
from meshnode.identity.node_id import NodeId
from meshnode.trust.caller import Caller
from meshnode.trust.decision import Decision, decide, in_words, narrowed
from meshnode.trust.parties import EVERY, Parties
from meshnode.trust.policy import Act, Policy

NODE_LIST = "allow list of this node"
RELAY_LIST = "allow list of this relay"
SERVICE_LIST = "allow list of {}"
CONNECTED = (Act.CONNECT, Act.SERVICE, Act.RELAY)  # what the node's own list is about: what needs a connection to it

OnObserved = Callable[[NodeId, Act, str, Decision], None]


def _ignore(*_: object) -> None:
    return None


class Lists:
    """The allow lists of one node; ``services`` has that of each service that it offers."""

    def __init__(self, node: Parties = EVERY, relay: Parties = EVERY) -> None:
        self.node = node
        self.relay = relay
        self.services: dict[str, Parties] = {}

    def decide(self, caller: Caller, act: Act, what: str) -> Decision | None:
        """Return the refusal of a list, or by which list of a service it may; None when no list is about it."""
        if act in CONNECTED and not self.node.has(caller):
            return Decision(False, NODE_LIST, None, "it is not in the allow list of the node (--allow)")
        if act is Act.RELAY:
            allowed, name = self.relay, RELAY_LIST
        elif act is Act.SERVICE and what in self.services:
            allowed, name = self.services[what], SERVICE_LIST.format(what)
        else:
            return None
        grant = caller.grant if allowed.by_role_only(caller) else None
        if allowed.has(caller):
            return Decision(True, name, grant, f"the {name} has it")
        needs = f" (role {' or '.join(sorted(allowed.roles))})" if allowed.roles else ""
        return Decision(False, name, None, f"it is not in the {name}{needs}")


class Guard:
    """Decides for one node. ``own`` is this node itself.

    ``callers`` tells what a node's grants say, ``name_of`` the name that it has here, "" when it has none.

    ``on_observed`` hears of what a policy in mode ``observe`` would refuse, once until something changes;
    ``on_change`` of every change, so that what is no longer allowed can be ended, ``on_service`` of the list of a
    service that is offered, or offered again, and ``on_reconsider`` of nodes that may have other names or roles.
    """

    def __init__(self, own: NodeId, lists: Lists | None = None) -> None:
        self.own = own
        self.lists = lists or Lists()
        self.local: Policy | None = None
        self.mesh: Policy | None = None
        self.callers: Callable[[NodeId], Caller] = Caller
        self.name_of: Callable[[NodeId], str] = lambda peer: ""
        self.on_observed: OnObserved = _ignore
        self.on_change: list[Callable[[], None]] = []
        self.on_service: Callable[[], None] = lambda: None
        self.on_reconsider: Callable[[], None] = lambda: None
        self._answers: dict[NodeId, dict[tuple[Act, str], Decision]] = {}
        self._count = 0  # of answers

    # ---- questions

    def ask(self, act: Act, peer: NodeId, what: str = "") -> Decision:
        """Decide whether a peer may do something here; ``what`` names a service, a topic or a name."""
        known = self._answers.get(peer)
        found = known.get((act, what)) if known is not None else None
        return found if found is not None else self._answer(act, peer, what)

    def admits(self, peer: NodeId) -> bool:
        """Return whether a peer may be connected."""
        return self.ask(Act.CONNECT, peer).allowed

    def may_admit(self, peer: NodeId) -> bool:
        """Return whether a peer may be connected, or may turn out to be: the list names roles, and its are not known.

        To be asked before a node dials on the mesh's behalf; once its grants are known, ``admits`` decides.
        """
        return self.admits(peer) or (bool(self.lists.node.roles) and self.callers(peer).grant is None)

    def relays(self, peer: NodeId) -> bool:
        """Return whether this node relays for a peer."""
        return self.ask(Act.RELAY, peer).allowed

    def joins(self, peer: NodeId, topic: str) -> bool:
        """Return whether a node may take part in a topic: it may subscribe, or a rule lets it publish.

        What publishes is part of the topic's tree, so it hears what others publish.
        """
        heard = self.ask(Act.SUBSCRIBE, peer, topic)
        if heard.allowed or heard.rule is not None:
            return heard.allowed
        spoken = self.ask(Act.PUBLISH, peer, topic)
        return spoken.allowed and spoken.rule is not None

    def known(self, peer: NodeId) -> Caller:
        """Return what is known of a node: its grants, and the name that it has here."""
        found = self.callers(peer)
        name = found.name or self.name_of(peer) or None
        return (
            found
            if name == found.name
            else Caller(found.id, name, found.roles, found.services, found.grant, found.former)
        )

    def uses_names(self) -> bool:
        """Return whether a rule in force is about nodes of some name."""
        policies = [policy for policy in (self.mesh, self.local) if policy is not None]
        return any(rule.callers.names or rule.targets.names for policy in policies for rule in policy.rules)

    def _answer(self, act: Act, peer: NodeId, what: str) -> Decision:
        decision = self.explain(self.known(peer), self.known(self.own), what, act, self.on_observed)
        if self._count >= MAX_DECISIONS:
            self._forget()
        self._count += 1
        self._answers.setdefault(peer, {})[act, what] = decision
        return decision

    def explain(
        self, caller: Caller, target: Caller, what: str, act: Act = Act.SERVICE, observed: OnObserved = _ignore
    ) -> Decision:
        """Decide for any two nodes, without keeping the answer.

        Args:
            caller: The node that asks.
            target: The node that is asked. This node's lists count only when that is this node.
            what: The service, topic or name.
            act: What it asks.
            observed: Hears of what a policy that only observes would refuse.
        """
        listed = self.lists.decide(caller, act, what) if target.id == self.own else None
        refusal = listed if listed is not None and not listed.allowed else narrowed(caller, what, act)
        if refusal is not None:
            return refusal
        answers = [listed] if listed is not None else []
        for policy in (self.mesh, self.local):
            if policy is None:
                continue
            answer = decide(policy, caller, target, what, act)
            if not answer.allowed and policy.observes:
                observed(caller.id, act, what, answer)
                answer = Decision(True, answer.rule, answer.grant, f"{answer.why}; the policy only observes")
            if not answer.allowed:
                return answer
            answers.append(answer)
        return _joined(answers) or self._unruled(target, what, act)

    def _unruled(self, target: Caller, what: str, act: Act) -> Decision:
        if act is Act.SERVICE and target.id == self.own:
            return Decision(True, None, None, f"no policy is in force; but this node has no service {what} now")
        if act is Act.SERVICE:
            return Decision(True, None, None, "no policy is in force here: only the allow lists of that node decide")
        return Decision(True, None, None, f"no rule and no list is about it: every member may {in_words(act, what)}")

    # ---- changes

    def set_local(self, policy: Policy | None) -> None:
        """Put this node's own policy in force, or none."""
        self.local = policy
        self.changed()

    def set_mesh(self, policy: Policy | None) -> None:
        """Put the policy of the mesh's authority in force."""
        self.mesh = policy
        self.changed()

    def set_service(self, name: str, allowed: Parties | None) -> None:
        """Take the allow list of a service that this node offers; None when it does no longer."""
        if allowed is None:
            self.lists.services.pop(name, None)
        else:
            self.lists.services[name] = allowed
        self._forget()
        if allowed is not None:
            self.on_service()

    def heard_of(self, peer: NodeId) -> None:
        """Decide again about one peer when it asks next: something is known of it that was not."""
        self._count -= len(self._answers.pop(peer, ()))

    def reconsider(self, peers: Iterable[NodeId]) -> None:
        """Decide again about nodes that may have other names or roles now; ``on_reconsider`` looks at what runs.

        Any member may say without end that it has others, so it does that once in a while, not for each.
        """
        for peer in peers:
            self.heard_of(peer)
        self.on_reconsider()

    def changed(self) -> None:
        """Decide everything again: a policy, a list, or what is known of a peer (its roles, its name) has changed."""
        self._forget()
        for hear in list(self.on_change):
            hear()

    def _forget(self) -> None:
        self._answers.clear()
        self._count = 0


def _joined(answers: list[Decision]) -> Decision | None:
    """Return the answer to show of several layers that allow: the last rule that decided, and the grant it took."""
    if not answers:
        return None
    shown = next((answer for answer in reversed(answers) if answer.rule is not None), answers[-1])
    grant = next((answer.grant for answer in reversed(answers) if answer.grant is not None), None)
    return Decision(True, shown.rule, grant, shown.why)
