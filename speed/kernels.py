"""Checks and times the updates of `hpenv.optim.fused`: `python -m speed.kernels`.

On a machine with CUDA it checks twin and Triton kernels, times them, and writes one file. Without
CUDA it checks the twin on the CPU and says what it has not run. Exit code 1: a check has failed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpenv.benchmark.command_line import check_counts, configuration, refusals
from hpenv.benchmark.facts import environment_facts
from hpenv.benchmark.files import check_file, write_text
from hpenv.lm import architecture
from hpenv.optim.fused.arena import AdamWArena, MuonArena
from hpenv.optim.fused.twin import step_adamw, step_muon
from hpenv.pretraining.config import PretrainingConfig
from hpenv.pretraining.plant import PretrainingPlant
from speed.kernel_checks import RULES, Stepper, check_all, new_arena
from speed.kernel_times import update_times
from speed.timing import alternate, ratio

#: Tokens of the vocabulary of `jel-73m`, and of bytes.
VOCABULARIES = {"jel-73m": 32_768, "nano": 256}
TWINS: dict[type, Stepper] = {
    AdamWArena: lambda arena: partial(step_adamw, arena),
    MuonArena: lambda arena: partial(step_muon, arena, "float32"),
}
#: Parts that need CUDA, by their key in the results.
NEEDS_CUDA = ("checks of the kernels", "checks of the twin on the GPU", "times", "population")


@dataclass(frozen=True)
class KernelsConfig:
    """Sizes of the measurements."""

    out: Path = Path("results/benchmarks_kernels.json")  # JSON with every number
    rounds: int = 9  # alternating rounds per ratio; the median is reported
    repeats: int = 50  # updates of a round
    population: int = 64  # runs of `nano`
    num_steps: int = 20  # training steps of a round of the population [steps]

    def __post_init__(self) -> None:
        """Checks that all counts are at least 1."""
        check_counts(self, "rounds", "repeats", "population", "num_steps")


def preset_shapes(preset: str) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a preset's tensors."""
    return architecture.parameter_shapes(architecture.preset(preset, VOCABULARIES[preset]))


def population_speedup(config: KernelsConfig, device: str) -> dict[str, Any]:
    """Compares a population of `nano` to as many single runs, in training steps of the plant."""
    setting = PretrainingConfig(device=device)
    plants = {n: PretrainingPlant(setting, n) for n in (1, config.population)}
    for n, plant in plants.items():
        plant.reset(range(n))
    functions = {
        str(n): partial(plant.advance, np.full(n, config.num_steps)) for n, plant in plants.items()
    }
    times = alternate(functions, config.rounds)
    found = ratio(times, "1", str(config.population))
    return {
        f"{config.population} single runs / population": {
            key: config.population * value for key, value in found.items()
        },
        "goal": "64 single runs / population >= 20",
    }


def on_gpu(config: KernelsConfig) -> dict[str, Any]:
    """Returns everything that needs CUDA and Triton. See NEEDS_CUDA."""
    import triton

    from hpenv.optim.fused.launches import FusedAdamW, FusedMuon

    device = torch.device("cuda")
    fused: dict[type, Stepper] = {
        AdamWArena: lambda arena: FusedAdamW(arena).step,
        MuonArena: lambda arena: FusedMuon(arena, "float32").step,
    }
    found: dict[str, Any] = {
        name: {kind.__name__: check_all(kind, device, steps[kind]) for kind in steps}
        for name, steps in (
            ("checks of the kernels", fused), ("checks of the twin on the GPU", TWINS),
        )
    }  # fmt: skip

    found["checks of the kernels"]["other values compile nothing"] = check_compilations(
        triton.knobs.compilation, device, fused
    )

    facts = torch.cuda.get_device_properties(device)
    # Two transfers a clock: the rate on the data sheet. The clock is in kHz, the width in bits.
    nominal = 2 * 1e3 * facts.memory_clock_rate * facts.memory_bus_width / 8
    found["gpu"] = {
        "name": facts.name,
        "capability": [facts.major, facts.minor],
        "multiprocessors": facts.multi_processor_count,
        "nominal gigabytes per second": nominal / 1e9,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
    }
    times = {
        f"{preset}, N = {n}": update_times(
            preset_shapes(preset), n, device, fused[AdamWArena], config.rounds, config.repeats
        )
        for preset, n in (("jel-73m", 1), ("nano", config.population), ("nano", 1))
    }
    largest = times["jel-73m, N = 1"]
    largest["fraction of the nominal bandwidth"] = 1e9 * largest["gigabytes per second"] / nominal
    largest["goal"] += "; fraction of the nominal bandwidth >= 0.8"
    return found | {"times": times, "population": population_speedup(config, "cuda")}


def check_compilations(
    compilation: Any, device: torch.device, steppers: Mapping[type, Stepper]
) -> dict[str, Any]:
    """Counts the kernels that are compiled for other values of all rates.

    Args:
        compilation: `triton.knobs.compilation`, which reports every compilation.
        device: a GPU.
        steppers: kind of an arena -> its update.
    """
    names: list[str] = []
    arenas = [new_arena(kind, device, [0] * len(RULES[kind][1])) for kind in steppers]
    steps = [stepper(arena) for stepper, arena in zip(steppers.values(), arenas, strict=True)]
    for step in steps:
        step()
    compilation.listener = lambda **facts: names.append(facts["src"].name)
    for arena, step in zip(arenas, steps, strict=True):
        for values in arena.rates:
            values.fill_(1.0)
        step()
    compilation.listener = None
    return {"compiled": names, "passed": not names}


def failures(results: Mapping[str, Any], path: str = "") -> list[str]:
    """Returns the names of the checks that have not passed."""
    found = [path] if results.get("passed") is False else []
    for name, value in results.items():
        if isinstance(value, Mapping):
            found += failures(value, f"{path}: {name}" if path else name)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs everything that this machine can, and prints and writes the numbers."""
    config = configuration(KernelsConfig, "speed.kernels", __doc__, arguments)
    with refusals():
        check_file("out", config.out)

    processor = torch.device("cpu")
    results: dict[str, Any] = {
        "configuration": asdict(config) | {"out": str(config.out)},
        "facts": environment_facts({}, ""),
        "checks of the twin on the CPU": {
            kind.__name__: check_all(kind, processor, stepper) for kind, stepper in TWINS.items()
        },
    }
    if torch.cuda.is_available():
        results |= on_gpu(config)
    else:
        results["not run"] = {name: "this machine has no CUDA device" for name in NEEDS_CUDA}

    print(json.dumps(results, indent=1))
    write_text(config.out, json.dumps(results, indent=1) + "\n")
    if failed := failures(results):
        sys.exit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
