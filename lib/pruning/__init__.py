"""Unstructured pruning; names.py needs no torch, pruner.py does the work."""
