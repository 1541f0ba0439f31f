"""Scores of controllers: suites, rows, statistics, and the board.

The way of a score: `scoring.score` finds a controller (`controllers`) and a suite (`instances`), an
executor computes the rows that are missing (`rows`, `executors`), `board` puts them against the
references, and `page` draws it. `evaluate.evaluate_controller` runs a controller on seeds of any
environment. The program that trains a policy gives it its `spec` with `environments.spec_of`.
"""

from hpenv.benchmark.scoring import Result, score

__all__ = ["Result", "score"]
