"""Relays: nodes that carry others' packets unopened. Sans-IO; ``driver/relaying.py`` wires them."""
