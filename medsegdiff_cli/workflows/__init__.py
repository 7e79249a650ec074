"""Compound verbs: the only place where rooms meet."""
