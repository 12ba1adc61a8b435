"""Tools of the laboratory that know nothing of GPT-2."""
