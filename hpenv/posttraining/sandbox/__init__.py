r"""Sandbox for programs written by a model: a separate process without files or network.

Nothing of a program survives its run. The package imports the standard library alone. SECURITY.md
says what it promises, and what it does not.

Example:
    >>> from hpenv.posttraining.sandbox import Call, Limits, Sandbox
    >>> with Sandbox(limits=Limits(wall_seconds=2.0)) as box:  # doctest: +SKIP
    ...     outcome = box.run("def f(xs):\n    return sum(xs)\n", calls=[Call("f", ([1, 2],))])
    >>> outcome.returned  # doctest: +SKIP
    (Result(value=3, error=''),)
"""

from hpenv.posttraining.sandbox.box import Sandbox
from hpenv.posttraining.sandbox.jobs import (
    UNSERIALIZABLE,
    Call,
    Job,
    Limits,
    Outcome,
    Result,
    SandboxUnavailable,
)

__all__ = [
    "UNSERIALIZABLE",
    "Call",
    "Job",
    "Limits",
    "Outcome",
    "Result",
    "Sandbox",
    "SandboxUnavailable",
]
