"""Tests of the gpt2 package."""
