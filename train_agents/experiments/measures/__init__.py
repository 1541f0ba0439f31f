"""Measurements of the experiments that are more than a score."""
