"""Audits of finished runs: every reported number recomputed by other code."""
