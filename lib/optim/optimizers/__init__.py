"""One file for each optimizer, and its menu beside it; see lib/optim/spec.py."""
