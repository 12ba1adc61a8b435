"""Optimizers: a file for each in optimizers/; registry.py builds them by name."""
