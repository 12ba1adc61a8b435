"""Autotuning: which of several equal kernels a run trains with."""
