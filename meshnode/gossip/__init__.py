"""Membership, failure detection, broadcast and anti-entropy: docs/explanation/gossip.md says how and why."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshnode.gossip.effects import (
        Banned,
        Changed,
        Connect,
        Effect,
        Expired,
        Fault,
        MemberChanged,
        NeedContacts,
        Probe,
        Release,
        Send,
        Status,
    )
    from meshnode.gossip.entry import Entry, Kind
    from meshnode.gossip.kinds import Member, parse_member
    from meshnode.gossip.messages import Contact, Message, decode_message, encode_message
    from meshnode.gossip.router import Gossip

__all__ = [
    "Banned",
    "Changed",
    "Connect",
    "Contact",
    "Effect",
    "Entry",
    "Expired",
    "Fault",
    "Gossip",
    "Kind",
    "Member",
    "MemberChanged",
    "Message",
    "NeedContacts",
    "Probe",
    "Release",
    "Send",
    "Status",
    "decode_message",
    "encode_message",
    "parse_member",
]

if not TYPE_CHECKING:
    _MODULES = {
        "meshnode.gossip.effects": (
            "Banned",
            "Changed",
            "Connect",
            "Effect",
            "Expired",
            "Fault",
            "MemberChanged",
            "NeedContacts",
            "Probe",
            "Release",
            "Send",
            "Status",
        ),
        "meshnode.gossip.entry": (
            "Entry",
            "Kind",
        ),
        "meshnode.gossip.kinds": (
            "Member",
            "parse_member",
        ),
        "meshnode.gossip.messages": (
            "Contact",
            "Message",
            "decode_message",
            "encode_message",
        ),
        "meshnode.gossip.router": ("Gossip",),
    }
    _WHERE = {name: module for module, names in _MODULES.items() for name in names}

    def __getattr__(name: str) -> Any:
        """Import on first use (PEP 562): a node without gossip needs a few of these modules, and no core."""
        if name not in _WHERE:
            raise AttributeError(f"module 'meshnode.gossip' has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_WHERE[name]), name)
        return value
