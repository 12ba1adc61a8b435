"""Latent attention with rotary keys, as in DeepSeek-V2."""
