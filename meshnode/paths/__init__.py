"""Which address to use for a peer, now. Sans-IO; one ``PeerPaths`` per peer."""
