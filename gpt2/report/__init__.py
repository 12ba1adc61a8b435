"""From run directories to verdicts, tables, plots and one HTML page. Torch-free."""
