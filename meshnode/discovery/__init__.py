"""Discovery: finds the record of a key through every source."""
