"""Audits of finished runs: recompute every reported number with independent code."""
