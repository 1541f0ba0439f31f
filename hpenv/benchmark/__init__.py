"""Scores of controllers: suites, rows, statistics, and the board.

The way of a score: `scoring.score` finds a controller (`controllers`) and a suite (`instances`), an
executor computes the rows that are missing (`rows`, `executors`), `board` puts them against the
references, and `page` draws it. `evaluate.evaluate_controller` runs a controller on seeds of any
environment. The program that trains a policy gives it its `spec` with `environments.spec_of`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpenv.benchmark.scoring import Result, score

__all__ = ["Result", "score"]


def __getattr__(name: str) -> Any:
    """Imports `score` at its first use, so that other modules of the room do not pay for it."""
    if name in __all__:
        from hpenv.benchmark import scoring

        return getattr(scoring, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
