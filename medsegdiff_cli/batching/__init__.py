"""Batches: deterministic patches of preprocessed cases, augmented, from worker processes."""
