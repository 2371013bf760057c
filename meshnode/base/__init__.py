"""Vocabulary and data structures of every room: addresses, clocks, timers, wire encoding, metrics, limits."""
