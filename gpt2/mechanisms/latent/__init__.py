"""Latent reciprocity between MLP and MLA."""
