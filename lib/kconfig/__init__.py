"""Kconfig: strict loading, .config and config.py. Torch-free."""
