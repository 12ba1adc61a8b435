"""GPUs: device, environment, monitor, peak rates, profiler."""
