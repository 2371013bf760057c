"""Distributed hash table: stores and finds nodes' records without a server. Sans-IO; see ``core``."""

from meshnode.discovery.dht.core import Dht, is_congested, place_of
from meshnode.discovery.dht.effects import (
    ContactsChanged,
    Effect,
    Found,
    LookupDone,
    LookupStats,
    Proven,
    Published,
    RecordPushed,
    SendSealed,
)
from meshnode.discovery.dht.messages import ANSWERS, FIRST_KIND, LAST_KIND
from meshnode.discovery.dht.source import DhtSource

__all__ = [
    "ANSWERS",
    "FIRST_KIND",
    "LAST_KIND",
    "ContactsChanged",
    "Dht",
    "DhtSource",
    "Effect",
    "Found",
    "LookupDone",
    "LookupStats",
    "Proven",
    "Published",
    "RecordPushed",
    "SendSealed",
    "is_congested",
    "place_of",
]
