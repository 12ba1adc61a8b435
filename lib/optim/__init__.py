"""Optimizers: one file a family; names.py needs no torch, registry.py builds."""
