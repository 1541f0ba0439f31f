"""Scores of controllers: evaluation, statistics, result files."""
