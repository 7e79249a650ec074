"""Fingerprinting: measure a dataset's images once per file content."""
