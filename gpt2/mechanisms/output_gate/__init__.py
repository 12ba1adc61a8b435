"""SDPA output gate."""
