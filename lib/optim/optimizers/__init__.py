"""The optimizers: a file and a menu for each; see lib/optim/spec.py."""
