"""Metrics on arrays: overlap and surface distances, their definitions named; numpy and scipy only."""
