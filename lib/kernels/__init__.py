"""Triton kernels and the torch operators over them; import them where one runs."""
