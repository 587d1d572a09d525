"""Experiments as commands: what the documentation's results come from."""
