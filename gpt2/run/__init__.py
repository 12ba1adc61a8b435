"""Running a matrix: results folder, runner, estimates, GPU sharing. Torch-free."""
