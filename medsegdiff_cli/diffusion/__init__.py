"""Toolbox of noise: the random streams that methods draw from."""
