"""Facts of a measurement: everything except the configuration on which a number depends.

A commit identifies the code. It does not identify the instructions of the processor and of
PyTorch's kernels. Those decide the last bits of a number and most of its speed. The same commit on
another machine is another measurement.
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

ROOT = Path(__file__).resolve().parents[2]
#: Linux's description of the processor.
CPUINFO = Path("/proc/cpuinfo")
#: Instruction sets that select kernels, under their Linux names.
INSTRUCTIONS = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "asimd", "bf16", "sve",
)  # fmt: skip
#: Environment variables that limit the instructions of PyTorch, MKL and oneDNN, or set threads.
LIMITS = (
    "ATEN_CPU_CAPABILITY",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
)


def environment_facts(
    env_kwargs: Mapping[str, Any] | None = None, corpus: str | None = None, processes: int = 1
) -> dict[str, Any]:
    """Returns the facts of a measurement, in JSON's types.

    Returns:
        - `versions` of Python and packages, `torch_threads` and `command`.
        - `commit` and `dirty` (True if a Python file differs from the commit), both None outside a
          checkout.
        - `processor` (its name), `instructions` (the entries of INSTRUCTIONS that it has, None if
          the system does not tell), `cpu_capability` (the instructions of PyTorch's kernels) and
          `limits` (the variables of LIMITS that are set).
        - `env_kwargs` and the corpus's sha256, as given, and `processes`, if several share the
          batches of the runs.
    """
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("hpenv", "torch", "numpy", "gymnasium"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # hpenv in a checkout without an install
            versions[name] = None

    commit, dirty = _COMMIT
    facts: dict[str, Any] = {
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
    }
    if processes > 1:
        facts["processes"] = processes
    if env_kwargs is not None:
        facts["env_kwargs"] = json.loads(json.dumps(dict(env_kwargs), default=_plain))

    return facts


def _plain(value: object) -> object:
    """Returns a JSON value for a value that JSON does not know."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else repr(value)


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _commit() -> tuple[str | None, bool | None]:
    """Returns the commit, and True if a Python file differs from it.

    A repository that merely contains our folder does not count.
    """
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT:
        return None, None
    # Only Python files. A long experiment rewrites its results, which does not change its code.
    status = _git("status", "--porcelain", "--", "*.py")
    return _git("rev-parse", "HEAD"), None if status is None else bool(status)


#: The commit of this process's code, read at import. A checkout may change during a long run.
_COMMIT = _commit()


def _cpuinfo(*keys: str) -> str | None:
    """Returns the value of the first of these keys in Linux's description of the processor."""
    if not CPUINFO.exists():
        return None

    for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return None


def _processor() -> str:
    """Returns the processor's name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _instructions() -> list[str] | None:
    """Returns the processor's entries of INSTRUCTIONS, or None if the system does not tell."""
    flags = _cpuinfo("flags", "Features")  # the second on ARM
    return None if flags is None else [name for name in INSTRUCTIONS if name in flags.split()]


def _command() -> list[str]:
    """Returns sys.argv, with our programs as `-m module`. Local paths are not recorded."""
    program = Path(sys.argv[0]).resolve()
    is_ours = program.is_relative_to(ROOT)
    if is_ours:  # not in .venv
        is_ours = not program.relative_to(ROOT).parts[0].startswith(".")
    if program.suffix == ".py" and is_ours:
        return ["-m", ".".join(program.relative_to(ROOT).with_suffix("").parts), *sys.argv[1:]]
    return [program.name, *sys.argv[1:]]
