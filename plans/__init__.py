"""Recipes: one YAML file a method (and data set), with its presets and the score to expect."""
