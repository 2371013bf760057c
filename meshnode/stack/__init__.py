"""The node without I/O: wires the cores together."""
