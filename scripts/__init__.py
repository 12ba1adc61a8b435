"""Command-line entries; each is thin."""
