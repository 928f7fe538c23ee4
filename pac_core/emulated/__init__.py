"""Emulated devices: what would be computed is waited for; messages, cache and schedule are real."""
