"""The pruning methods: a file and a menu for each; see lib/pruning/spec.py."""
