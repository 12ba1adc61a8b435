"""Jobs: processes, scheduling, run directories, Ray. Torch-free."""
