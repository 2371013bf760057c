"""``meshnode doctor``'s reasoning: from a snapshot of a node, as JSON, to findings. Pure: no I/O, no clock, no node."""
