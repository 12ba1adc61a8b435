"""Settings: their fields, how they are read, which exclude each other. Torch-free."""
