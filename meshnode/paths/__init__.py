"""Choice of the path to use for a peer. Sans-IO; one ``PeerPaths`` per peer."""
