"""Preprocessing: cases of a dataset folder onto the grid of a plan, into the store."""
