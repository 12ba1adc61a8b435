"""Pruning; registry.py needs no torch, pruner.py prunes weights, heads.py heads."""
