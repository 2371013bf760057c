"""Vocabulary that every room uses: addresses, clocks, timers, the wire's encoding, metrics and limits."""
