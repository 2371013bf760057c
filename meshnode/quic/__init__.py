"""Authenticated connections and streams over a QUIC engine."""
