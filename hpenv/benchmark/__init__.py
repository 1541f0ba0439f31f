"""Scores of controllers: evaluation, statistics, result files.

The way of a controller: `controllers.load_controller` finds it, `evaluate.evaluate_controller` runs
it on seeds, `statistics` compares its rows with others, and `results.write_result` writes them. The
program that trains a policy gives it its `spec` with `environments.spec_of`.
"""
