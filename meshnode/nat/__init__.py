"""Knowledge of this node's own network: NAT mapping and filtering, local networks, port search, port mapping."""
