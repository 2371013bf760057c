"""Ways in for programs that cannot be changed: a SOCKS5 and HTTP proxy whose hosts are nodes and their services."""
