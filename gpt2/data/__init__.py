"""Data sets: sources, tokenizers, preparation, token files on disk. Torch-free."""
