"""Isolation from the caller's torch settings.

hpenv computes the same numbers whatever the caller has set.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

#: Devices whose autocast a caller may have switched on around a call.
AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")

_forked = False


def _remember_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_remember_fork)


@contextlib.contextmanager
def torch_defaults() -> Iterator[None]:
    """Sets torch to the state in which it starts a process, and restores the caller's at the end.

    Gradients are on, inference mode and autocast are off, the default dtype is float32, and the
    default device is the CPU. Clients step environments within `torch.no_grad()` or
    `torch.inference_mode()`. A default dtype of float64 would change the numbers of a run and raise
    no error.

    All threads of a process share one default dtype. If the caller's is not float32, other threads
    see float32 meanwhile.

    A forked process computes on one thread. The threads that its parent computed on do not exist in
    it, and torch would wait for them for ever. `gym.make_vec(..., vectorization_mode="async")`
    forks its workers where Python's default is fork.
    """
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for device in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))

        dtype = torch.get_default_dtype()
        if dtype != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)

        if _forked and (threads := torch.get_num_threads()) > 1:
            stack.callback(torch.set_num_threads, threads)
            torch.set_num_threads(1)

        yield


def with_torch_defaults(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorates a function so that it runs under `torch_defaults`."""

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with torch_defaults():
            return function(*args, **kwargs)

    return call
