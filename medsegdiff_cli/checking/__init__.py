"""Checking: every problem of a dataset folder in one report."""
