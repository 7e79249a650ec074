"""Evaluation: predictions against references, per case, class, group and domain."""
