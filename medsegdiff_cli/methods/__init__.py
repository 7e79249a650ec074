"""Segmentation methods: one file per paper idea, one registry line per name."""
