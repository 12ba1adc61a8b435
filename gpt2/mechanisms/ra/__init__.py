"""Reciprocal attention."""
