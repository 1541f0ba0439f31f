"""Measures the main job with AVX2 alone and with all instruction sets: `make bench-processors`.

The libraries read their limits when they are loaded, so each limit has a separate process. Compared
numbers come from alternating rounds within one process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Environment variables that limit PyTorch's kernels, MKL and oneDNN.
LIMITS: dict[str, dict[str, str]] = {
    "AVX2 alone": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "this processor": {},
}


@dataclass(frozen=True)
class ProcessorsConfig:
    """Configuration of the program."""

    out: Path = Path("results/benchmarks_processors.json")  # JSON with every number


def measure(limits: dict[str, str]) -> dict[str, Any]:
    """Runs the benchmarks of operators in a separate process, on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "numbers.json"
        command = [
            sys.executable,
            "-m",
            "speed.run",
            "--only",
            "newton_schulz",
            "operators",
            "--threads",
            "1",
        ]
        subprocess.run([*command, "--out", str(file)], check=True, env=os.environ | limits)

        return json.loads(file.read_text())


def main() -> None:
    """Measures with each limit and writes the numbers."""
    import tyro

    config = tyro.cli(ProcessorsConfig, description=__doc__)
    results = {name: measure(limits) for name, limits in LIMITS.items()}
    config.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
