"""Gates of attention heads by the MLP of the block before."""
