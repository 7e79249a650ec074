"""Toolbox for images as arrays: read, write, crop, resample, normalise, and the inverses of these."""
