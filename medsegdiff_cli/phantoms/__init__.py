"""Phantoms: seeded drawings with known labels, the scanners that make images of them, and appearance shifts.

They show that a pipeline works and let tests and experiments measure it; they resemble no patient and prove nothing
about patients. Everything here is arrays in, arrays out; `workflows.phantoms` writes them as files.
"""
