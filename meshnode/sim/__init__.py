"""Whole nodes in virtual time: the same ``Mesh`` as in production, without sockets, clocks or sleeping."""
