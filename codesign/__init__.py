"""Prune a network for the hardware that runs it: evaluate, solve, search, explore."""
