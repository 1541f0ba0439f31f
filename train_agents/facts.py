"""Facts of a measurement: what a number depends on besides its configuration.

A commit says which code ran. It does not say which instructions the processor and PyTorch's kernels
used, and those decide the last bits of a number and most of its speed: the same commit is another
measurement on another machine.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
#: Where Linux describes the processor.
CPUINFO = Path("/proc/cpuinfo")
#: Instruction sets that kernels are chosen by, under Linux's names of them.
INSTRUCTIONS = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_bf16", "amx_int8", "asimd", "bf16", "sve",
)  # fmt: skip
#: Environment variables that keep PyTorch, MKL and oneDNN from instructions that the processor has,
#: or set threads.
LIMITS = (
    "ATEN_CPU_CAPABILITY",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
)


def environment_facts(
    env_kwargs: Mapping[str, Any] | None = None, corpus: str | None = None
) -> dict[str, Any]:
    """Returns what a number depends on besides its configuration, JSON-able.

    Returns:
        `versions`, `commit` and `dirty` (a Python file differs from the commit; both None outside a
        checkout), `torch_threads`; `processor` (its name), `instructions` (those of INSTRUCTIONS
        that it has; None where the system does not tell), `cpu_capability` (those that PyTorch's
        kernels use), `limits` (values of the variables of LIMITS that are set); `command`; the
        env's arguments and the corpus's sha256 as given.
    """
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("hpenv", "torch", "numpy", "gymnasium"):
        try:
            versions[name] = importlib.metadata.version(name)
        except (
            importlib.metadata.PackageNotFoundError
        ):  # hpenv, run from a checkout without an install
            versions[name] = None
    commit, dirty = _COMMIT
    return {
        "versions": versions,
        "commit": commit,
        "dirty": dirty,
        "torch_threads": torch.get_num_threads(),
        "processor": _processor(),
        "instructions": _instructions(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "limits": {name: os.environ[name] for name in LIMITS if name in os.environ},
        "command": _command(),
        "corpus": corpus,
    } | (
        {}
        if env_kwargs is None
        else {"env_kwargs": json.loads(json.dumps(dict(env_kwargs), default=_plain))}
    )


def _plain(value: object) -> object:
    """Returns what stands in JSON for a value that JSON does not know."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else repr(value)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _commit() -> tuple[str | None, bool | None]:
    """Commit and whether a source differs from it; a repository that merely contains our folder does not count."""
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT:
        return None, None
    # Of sources alone: the results that a long experiment rewrites as it goes change nothing that
    # it runs.
    status = _git("status", "--porcelain", "--", "*.py")
    return _git("rev-parse", "HEAD"), None if status is None else bool(status)


#: Of the code that this process runs: read when it is loaded, since a checkout may move on during a
#: long experiment.
_COMMIT = _commit()


def _cpuinfo(*keys: str) -> str | None:
    """Returns the value of the first of these keys that Linux's description of the processor has."""
    lines = (
        CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
        if CPUINFO.exists()
        else []
    )
    values = [
        value.strip()
        for key, _, value in (line.partition(":") for line in lines)
        if key.strip() in keys
    ]
    return values[0] if values else None


def _processor() -> str:
    """Returns the processor's name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _instructions() -> list[str] | None:
    """Returns those of INSTRUCTIONS that the processor has; None where the system does not tell."""
    flags = _cpuinfo("flags", "Features")  # the second on ARM
    return None if flags is None else [name for name in INSTRUCTIONS if name in flags.split()]


def _command() -> list[str]:
    """sys.argv, a program of ours as `-m module`: where the checkout lies is nobody's business."""
    program = Path(sys.argv[0]).resolve()
    ours = program.is_relative_to(ROOT) and not program.relative_to(ROOT).parts[0].startswith(
        "."
    )  # not in .venv
    if program.suffix == ".py" and ours:
        return ["-m", ".".join(program.relative_to(ROOT).with_suffix("").parts), *sys.argv[1:]]
    return [program.name, *sys.argv[1:]]
