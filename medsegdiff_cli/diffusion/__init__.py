"""Toolbox of diffusion: noise streams, noise schedules, the Gaussian process, timestep grids and samplers."""
