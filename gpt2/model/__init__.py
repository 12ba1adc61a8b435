"""The model: GPT with its mechanisms; backends, their choice, reference formulas."""
