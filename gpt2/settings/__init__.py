"""Settings: fields, parsing and conflicts. Torch-free."""
