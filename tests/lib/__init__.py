"""Tests of lib/."""
