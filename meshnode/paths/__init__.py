"""Choice of the address to use for a peer. Sans-IO; one ``PeerPaths`` per peer."""
