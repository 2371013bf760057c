"""Trust: what a mesh's authority has granted to a key, and what a node therefore lets it do. Cores, without I/O."""
