"""GPT-2 with exchangeable mechanisms, their registry, plan and trainer."""
