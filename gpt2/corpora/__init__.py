"""From documents to token files: sources, tokenizers, preparation."""
