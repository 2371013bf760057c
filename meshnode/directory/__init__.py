"""Services and node names that the mesh's gossip carries. Sans I/O."""
