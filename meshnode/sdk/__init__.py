"""The public face: a node, its connections, streams, services and topics."""
