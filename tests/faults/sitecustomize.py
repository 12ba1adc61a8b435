"""Imported first by every Python that a test starts: tests/conftest.py puts this folder
on PYTHONPATH. Hundreds of them start, so only those with a fault import its code."""

import os

if any(name.startswith("KABLATE_TEST_") for name in os.environ):
    import planted

    planted.install()
