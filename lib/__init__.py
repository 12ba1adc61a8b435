"""Tools that are independent of GPT-2."""
