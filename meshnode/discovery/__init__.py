"""Where is X: records by key from every source."""
