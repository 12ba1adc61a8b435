"""Certificates: what is checked of each step before it may spend GPU time."""
