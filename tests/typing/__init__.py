"""User code for the type checkers: one file that must pass, one in which every marked line must fail."""
