"""Applications' own messages, spread among those that joined. Sans I/O."""
