"""Cross-token MLP."""
