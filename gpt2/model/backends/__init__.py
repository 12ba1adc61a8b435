"""Attention backends: a request, which backends support it, and calling one."""
