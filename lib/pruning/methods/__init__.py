"""One file for each pruning method, and its menu beside it; see lib/pruning/spec.py."""
