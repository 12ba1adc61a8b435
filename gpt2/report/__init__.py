"""Turns run directories into verdicts, tables, plots and one HTML page. Torch-free."""
