"""Relays: nodes that carry others' packets unopened. Sans-IO; ``stack/relay_client.py`` wires them."""
