"""Measures the project's claims about speed: `python -m speed.run`.

Every number is a ratio of medians over rounds that alternate within one process. A drift of the
machine's speed therefore affects both sides.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from hpenv.benchmark.command_line import configuration, refusals
from hpenv.benchmark.facts import environment_facts
from hpenv.benchmark.files import check_file, write_text
from speed.cell import sidecar_price, surface_price
from speed.config import BenchmarkConfig
from speed.dacbench import dacbench_ratios
from speed.deploy import attachment_price
from speed.features import feature_prices
from speed.jel import (
    achieved_flops,
    compiled_population,
    controller_overhead,
    env_overhead,
    make,
    population_on_processes,
    population_speedup,
    run_equivalents,
)
from speed.operators import newton_schulz_price, operator_shares
from speed.peers import peer_ratios
from speed.posttraining import program_price, update_price
from speed.ranks import division_speedup
from speed.steps import step_profile


def two_processes(config: BenchmarkConfig) -> dict[str, Any]:
    """Compares one run in one process to the same run in two of one thread. The limit is 2."""
    return {
        f"{tokens} tokens a step: one process / two": division_speedup(tokens, config.rounds)
        for tokens in (config.deployment_tokens, 8 * config.deployment_tokens)
    }


def cell_surface(config: BenchmarkConfig) -> dict[str, Any]:
    """Compares a step with channels and gauges at `cell11` to the bare step.

    The goal is at most 1.10 with all of them.
    """
    sizes = (
        ("N = 1", 1, config.deployment_tokens),
        ("N = 1", 1, config.meta_tokens),
        ("N = 8", 8, config.meta_tokens),
    )
    return {
        f"{name}, {tokens} tokens a step": surface_price(
            config.cell_rounds, config.price_rounds, tokens, num_envs
        )
        for name, num_envs, tokens in sizes
    }


def sidecar_share(config: BenchmarkConfig) -> dict[str, Any]:
    """Returns the Sidecar's fraction of a step at `cell11` and at 73 M parameters (goal < 0.02)."""
    return {
        "cell11, N = 1": sidecar_price(30, config.deployment_tokens, "cell11", 1),
        "cell11, N = 8": sidecar_price(15, config.meta_tokens, "cell11", 8),
        "jel-73m, N = 1": sidecar_price(3, config.deployment_tokens, "jel-73m", 1)
        | {"goal": "< 0.02"},
    }


def attached_controller(config: BenchmarkConfig) -> dict[str, Any]:
    """Compares steps of a torch optimizer with a controller to those without, at `jel-73m`.

    The goals are ratios of 1.003 for JEL and 1.03 for a controller that observes every feature.
    """
    return attachment_price(config.rounds)


def features(config: BenchmarkConfig) -> dict[str, Any]:
    """Compares windows with and without the features that travel.

    The goals are at most 1.03 at `nano` with 512 tokens, and 1.05 at `cell11`.
    """
    found = {
        f"{preset}, {tokens} tokens: with / without": feature_prices(
            preset, tokens, config.cell_rounds, config.price_rounds
        )
        for preset, tokens in (
            ("nano", config.deployment_tokens),
            ("cell11", config.meta_tokens),
        )
    }
    return found | {"goal": "all: <= 1.03 at nano, <= 1.05 at cell11"}


def projection_update(config: BenchmarkConfig) -> dict[str, Any]:
    """Times a GRPO update of TrainLoop-GRPOProjection-v0 with two sandboxes.

    The goal is 200 updates in 5 minutes on two cores.
    """
    return update_price(config.update_rounds, num_workers=2)


def sandboxed_program(config: BenchmarkConfig) -> dict[str, Any]:
    """Compares a program in the sandbox to one in a new interpreter. The goal is under 6 ms."""
    return program_price(config.rounds)


def newton_schulz(config: BenchmarkConfig) -> dict[str, Any]:
    """Compares Muon's iteration in bfloat16 to the default of a CPU.

    The sizes are those of a deployed run and of a meta-training population.
    """
    return {
        f"N = {n}, {tokens} tokens a step": newton_schulz_price(n, tokens, num_steps, config.rounds)
        for n, tokens, num_steps in ((1, config.deployment_tokens, 10), (8, config.meta_tokens, 5))
    }


def operators(config: BenchmarkConfig) -> dict[str, Any]:
    """Returns the fractions of each id's default step that single operators take."""
    return operator_shares()


def profiles(config: BenchmarkConfig) -> dict[str, Any]:
    """Returns where the time of a population's step goes: products, passes, calls and Python."""
    sizes = (
        *((num_envs, config.meta_tokens) for num_envs in (1, 8, 32)),
        *((num_envs, config.deployment_tokens) for num_envs in (1, 8)),
    )
    return {f"N = {n}, {tokens} tokens a step": step_profile(n, tokens) for n, tokens in sizes}


def peers(config: BenchmarkConfig) -> dict[str, Any]:
    """Compares steps of a nanoGPT-style loop and of transformers' Trainer to an env's."""
    return {
        f"{tokens} tokens a step": peer_ratios(tokens, config.rounds)
        for tokens in (config.meta_tokens, config.deployment_tokens)
    }


def dacbench(config: BenchmarkConfig) -> dict[str, Any]:
    """Compares the processor time of a step of DACBench's SGD env to that of ours."""
    return dacbench_ratios(config.rounds)


BENCHMARKS = (
    env_overhead,
    population_speedup,
    population_on_processes,
    compiled_population,
    two_processes,
    achieved_flops,
    run_equivalents,
    controller_overhead,
    cell_surface,
    sidecar_share,
    attached_controller,
    features,
    projection_update,
    sandboxed_program,
    newton_schulz,
    operators,
    profiles,
    peers,
    dacbench,
)
#: Benchmarks that also run with more than one thread. The others have a goal on one thread, or
#: choose their processes themselves.
THREADED = (
    population_speedup,
    achieved_flops,
    controller_overhead,
)


def check(config: BenchmarkConfig) -> None:
    """Checks the names of benchmarks, the sizes of runs, and the result file.

    Raises:
        ValueError: an argument is wrong. It names the argument.
    """
    names = [benchmark.__name__ for benchmark in BENCHMARKS]
    unknown = sorted(set(config.only) - set(names))
    if unknown:
        raise ValueError(f"only must be some of {names}; got {unknown}")
    check_file("out", config.out)
    for tokens in (config.meta_tokens, config.deployment_tokens):
        make(1, config, tokens)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmarks with each number of threads, and prints and writes the numbers."""
    config = configuration(BenchmarkConfig, "speed.run", __doc__, arguments)
    with refusals():
        check(config)

    results: dict[str, Any] = {"configuration": asdict(config) | {"out": str(config.out)}}
    results["facts"] = environment_facts({}, "")

    for i, threads in enumerate(config.threads):
        torch.set_num_threads(threads)
        for benchmark in BENCHMARKS:
            if config.only and benchmark.__name__ not in config.only:
                continue
            if i and benchmark not in THREADED:
                continue
            name = f"{benchmark.__name__}, {threads} thread{'s' * (threads > 1)}"
            start = time.monotonic()
            results[name] = benchmark(config)
            results[name]["seconds"] = round(time.monotonic() - start, 1)
            print(name, json.dumps(results[name], indent=1), flush=True)
            write_text(config.out, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
