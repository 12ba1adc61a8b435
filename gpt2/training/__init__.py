"""One run: batches, updates, evaluations, checkpoints, and how it ended."""
