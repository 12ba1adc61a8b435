"""Names that the runner shares with its runs: files of a results folder, variables."""

from __future__ import annotations

MATRIX_FILE = "matrix.json"
ESTIMATES_FILE = "estimates.json"
# which kernels all runs train with (gpt2/model/autotune/store.py)
KERNELS_FILE = "kernels.json"
# when a runner had which GPUs or slots (gpt2/run/sessions.py)
RUNNER_FILE = "runner.jsonl"
# tells a run what its manifest is to say: Proofs.word
VERIFIED = "KABLATE_VERIFIED"
