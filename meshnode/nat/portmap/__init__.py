"""Port mappings that a router grants: PCP, NAT-PMP, UPnP-IGD. Sans-IO; the sockets are in ``net/portmaps.py``."""
