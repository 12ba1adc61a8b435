"""Causal attention by exchangeable paths, and which of them serves a request."""
