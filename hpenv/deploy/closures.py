"""Closures of `optimizer.step(closure)`, which compute the loss and its gradients within the step.

Lightning gives one in every step of automatic optimization. A closure must see the values of the
optimizer as its owner set them, and the gradients exist only after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Closure:
    """A closure, with a call before it and a call after it.

    Args:
        closure: the closure that was given to `step`.
        before: called before each evaluation.
        after: called after each evaluation.
    """

    def __init__(
        self, closure: Callable[[], Any], before: Callable[[], None], after: Callable[[], None]
    ) -> None:
        self._closure, self._before, self._after = closure, before, after

    def __call__(self) -> Any:
        """Returns the result of the closure."""
        self._before()
        result = self._closure()
        self._after()
        return result


def wrap_closure(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    before: Callable[[], None],
    after: Callable[[], None],
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Returns the arguments of `step` with their closure as a `Closure`. None: they have none.

    A `step` that calls another one hands its closure on. That one stays as it is.

    Args:
        args: positional arguments, the optimizer first.
        kwargs: keyword arguments.
        before: called before each evaluation.
        after: called after each evaluation.
    """
    given = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if given is None or isinstance(given, Closure):
        return None if given is None else (args, kwargs)
    closure = Closure(given, before, after)
    if "closure" in kwargs:
        return args, kwargs | {"closure": closure}
    return (args[0], closure, *args[2:]), kwargs
