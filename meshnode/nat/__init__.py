"""What a node learns of its own network: NAT mapping and filtering, local networks, port search, port mapping."""
