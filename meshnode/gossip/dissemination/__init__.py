"""How entries spread: Plumtree, anti-entropy, the entry store."""
