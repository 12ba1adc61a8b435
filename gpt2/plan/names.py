"""Names shared by the runner and its runs: files of a results folder, variables."""

from __future__ import annotations

MATRIX_FILE = "matrix.json"
# the user's own steps (gpt2/plan/steps_file.py), if there are any
STEPS_COPY = "steps.toml"
ESTIMATES_FILE = "estimates.json"
# of a run: its checkpoint before the decay of wsd (gpt2/train/stable.py)
STABLE_FOLDER = "stable"
# kernels of all runs (gpt2/model/autotune/store.py)
KERNELS_FILE = "kernels.json"
# when a runner had which GPUs or slots (gpt2/run/sessions.py)
RUNNER_FILE = "runner.jsonl"
OUT_OF_USE = "out_of_use"  # kind of its records of GPUs that failed
# attention of a run by layer and head (gpt2/infer/attention_heads.py), in its folder
ATTENTION_FILE, ATTENTION_PLOT = "attention.json", "attention.png"
# whether the certificates passed, for a run's manifest (gpt2/run/tasks.py)
VERIFIED = "KABLATE_VERIFIED"
# argument of a trainer that is only to choose kernels (gpt2/run/first_kernels.py)
KERNELS_ONLY = "--kernels-only"
