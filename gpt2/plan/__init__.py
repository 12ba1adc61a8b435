"""Plan: steps, jobs, budgets and memory, before anything runs. Torch-free."""
