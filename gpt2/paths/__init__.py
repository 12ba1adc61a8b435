"""Several kernels compute the same: which of them a run trains with."""
