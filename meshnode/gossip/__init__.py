"""Membership, failure detection, broadcast and anti-entropy: docs/explanation/gossip.md says how and why."""

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
