"""Reference formulas of the model, which all fast code is compared with."""
