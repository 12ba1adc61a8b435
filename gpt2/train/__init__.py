"""Training of one run: batches, updates, evaluation, checkpoints, export."""
