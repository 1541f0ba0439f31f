"""Measures the project's claims about speed: `python -m speed.run`.

Every number is a ratio of medians over rounds that alternate within one process. A drift of the
machine's speed therefore affects both sides.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.jel import JELAgent
from hpenv.benchmark.command_line import check_counts, configuration, refusals
from hpenv.benchmark.facts import environment_facts
from hpenv.benchmark.files import check_file, write_text
from hpenv.env import TrainLoopVectorEnv
from hpenv.envs.jel import make_vector_env
from hpenv.lm import architecture
from speed.cell import sidecar_price, surface_price
from speed.dacbench import dacbench_ratios
from speed.deploy import attachment_price
from speed.features import feature_prices
from speed.operators import newton_schulz_price, operator_shares
from speed.peers import peer_ratios
from speed.plain import plain_loop
from speed.populations import divided_population
from speed.posttraining import program_price, update_price
from speed.ranks import division_speedup
from speed.steps import step_profile
from speed.timing import alternate, ratio

#: Number of episodes of a meta-training: 50 updates of 8 (JEL, table 2).
META_EPISODES = 400


@dataclass(frozen=True)
class BenchmarkConfig:
    """Sizes of the benchmarks."""

    out: Path = Path("results/benchmarks.json")  # JSON with every number
    rounds: int = 7  # alternating rounds per ratio; the median is reported
    num_steps: int = 100  # length of a timed run [steps]
    meta_tokens: int = 128  # batch of a step in meta-training [tokens]
    deployment_tokens: int = 512  # batch of a step of a deployed run [tokens]
    cell_rounds: int = 15  # alternating rounds of 4 steps of TrainLoop-Cell-v0
    update_rounds: int = 20  # alternating rounds of one update of TrainLoop-GRPOProjection-v0
    threads: tuple[int, ...] = (1, 2)  # torch threads, one pass over the benchmarks for each
    only: tuple[str, ...] = ()  # names of benchmarks; empty: all of them

    def __post_init__(self) -> None:
        """Checks that all counts are at least 1."""
        counts = (
            "rounds",
            "num_steps",
            "meta_tokens",
            "deployment_tokens",
            "cell_rounds",
            "update_rounds",
        )
        check_counts(self, *counts)
        if not self.threads or min(self.threads) < 1:
            raise ValueError(f"threads must be numbers >= 1; got {self.threads}")


def make(
    num_envs: int,
    config: BenchmarkConfig,
    batch_tokens: int,
    num_steps: int | None = None,
    **more: Any,
) -> TrainLoopVectorEnv:
    """Makes a vector env of `num_envs` rows of `nano`, with more arguments of the id."""
    steps = config.num_steps if num_steps is None else num_steps
    return make_vector_env(
        num_envs,
        autoreset_mode="DISABLED",
        batch_tokens=batch_tokens,
        num_steps=steps,
        interval=min(50, steps),
        schedule="none",
        **more,
    )


def episode(env: TrainLoopVectorEnv) -> None:
    """Runs one episode with neutral actions."""
    env.reset(seed=0)
    for _ in range(env.num_decisions):
        env.step(np.zeros((env.num_envs, len(env.action_names)), np.float32))


def episodes(env: TrainLoopVectorEnv, count: int) -> None:
    """Runs episodes one after the other."""
    for _ in range(count):
        episode(env)


def env_overhead(config: BenchmarkConfig) -> dict[str, Any]:
    """Compares stepping an env to a plain loop. The goal is at most 1.03."""
    env = make(1, config, config.deployment_tokens)
    times = alternate(
        {
            "env": lambda: episode(env),
            "plain": lambda: plain_loop(config.num_steps, env.interval, config.deployment_tokens),
        },
        config.rounds,
    )
    return {"env / plain loop": ratio(times, "env", "plain"), "goal": "<= 1.03"}


def population_speedup(config: BenchmarkConfig) -> dict[str, Any]:
    """Compares 8 single runs in sequence to a population of 8, at meta-training size.

    The goal is at least 2.
    """
    eight, one = make(8, config, config.meta_tokens), make(1, config, config.meta_tokens)
    times = alternate(
        {"single": lambda: episodes(one, 8), "population": lambda: episode(eight)}, config.rounds
    )
    return {"8 single runs / population of 8": ratio(times, "single", "population"), "goal": ">= 2"}


def population_on_processes(config: BenchmarkConfig) -> dict[str, Any]:
    """Compares single runs in sequence to a population on `processes:2`, at meta-training size.

    The goals are at least 3.4 for 8 runs and 4 for 32.
    """
    found = {
        f"{n} single runs / population of {n} on processes:2": divided_population(
            n, config.meta_tokens, rounds
        )
        for n, rounds in ((8, config.rounds), (32, max(3, config.rounds // 2)))
    }
    return found | {"goal": "8: >= 3.4, 32: >= 4"}


def compiled_population(config: BenchmarkConfig) -> dict[str, Any]:
    """Compares a population of 8 to the same with a compiled loss, at meta-training size.

    Compilation is in the first round, which is dropped.
    """
    plain, compiled = (make(8, config, config.meta_tokens, compile=each) for each in (False, True))
    times = alternate(
        {"plain": lambda: episode(plain), "compiled": lambda: episode(compiled)}, config.rounds
    )
    return {"plain / compiled": ratio(times, "plain", "compiled")}


def two_processes(config: BenchmarkConfig) -> dict[str, Any]:
    """Compares one run in one process to the same run in two of one thread. The limit is 2."""
    return {
        f"{tokens} tokens a step: one process / two": division_speedup(tokens, config.rounds)
        for tokens in (config.deployment_tokens, 8 * config.deployment_tokens)
    }


def achieved_flops(config: BenchmarkConfig) -> dict[str, Any]:
    """Compares FLOP/s of a step at deployment size to those of a 2048 x 2048 matrix product.

    Both are timed in the same rounds. The goal is over half.
    """
    shape = architecture.PRESETS["nano"]
    flops = flops_per_token(shape, 64) * config.deployment_tokens + muon_flops(shape)
    a, b = torch.ones(2048, 2048), torch.ones(2048, 2048)
    env = make(1, config, config.deployment_tokens, num_steps=50)
    env.reset(seed=0)
    plant = env.plant

    def steps() -> None:
        plant.reset([0])
        plant.advance(np.array([50]))

    times = alternate({"product": lambda: [a @ b for _ in range(8)], "steps": steps}, config.rounds)
    rate = [50 * flops / t / 1e9 for t in times["steps"]]
    peak = [8 * 2 * 2048**3 / t / 1e9 for t in times["product"]]
    shares = [r / p for r, p in zip(rate, peak, strict=True)]

    return {
        "GFLOP/s of a step": statistics.median(rate),
        "GFLOP/s of the product": statistics.median(peak),
        "share": statistics.median(shares),
        "goal": "> 0.5",
    }


def flops_per_token(config: architecture.GPTConfig, sequence_length: int) -> float:
    """Returns the operations of one token's forward and backward pass [FLOP].

    They are 6 per weight of a product, and 12 C per attended key. Causal attention is counted in
    full, as is customary (PaLM, appendix B). Lookups are free.
    """
    shapes = architecture.parameter_shapes(config)
    weights = sum(
        math.prod(s)
        for n, s in shapes.items()
        if architecture.parameter_kind(n) in ("matrix", "unembedding")
    )
    attended = sum(config.window(i, sequence_length) for i in range(config.n_layer))
    return 6.0 * weights + 12.0 * config.n_embd * attended


def muon_flops(shape: architecture.GPTConfig) -> float:
    """Returns the operations of five Newton-Schulz steps on every matrix of one run [FLOP]."""
    total = 0.0
    for name, sizes in architecture.parameter_shapes(shape).items():
        if len(sizes) == 2 and architecture.parameter_kind(name) == "matrix":
            rows, columns = sizes
            short, long = min(rows, columns), max(rows, columns)
            total += 5 * (2 * 2 * short * short * long + 2 * short**3)
    return total


def run_equivalents(config: BenchmarkConfig) -> dict[str, Any]:
    """Returns the cost of meta-training (400 episodes) in deployed runs, by the ratio of tokens.

    The goal at a ratio of 128 is the paper's 5.6. The numbers are extrapolated from shortened runs.
    Both sides grow equally with the number of steps, except the reset and the first probe, which
    weigh more in a short run.
    """
    steps = 24
    meta = make(8, config, config.meta_tokens, num_steps=steps)
    result: dict[str, Any] = {"steps timed": steps, "goal at 128": "<= 5.6"}

    for factor in (4, 16, 128):
        deployed = make(1, config, config.meta_tokens * factor, num_steps=steps)
        functions: dict[str, Callable[[], object]] = {
            "meta": partial(episode, meta),
            "deployed": partial(episode, deployed),
        }
        times = alternate(functions, max(3, config.rounds // 2))
        one = ratio(times, "meta", "deployed")
        result[f"ratio {factor}"] = {key: value * META_EPISODES / 8 for key, value in one.items()}

    return result


def controller_overhead(config: BenchmarkConfig) -> dict[str, Any]:
    """Compares a decision to one interval of a deployed run. The paper's ratio is under 1 %."""
    env = make(1, config, config.deployment_tokens, num_steps=50)
    agent = JELAgent(1, 2)
    observation = np.zeros((1, 1), np.float32)

    def decide() -> None:
        for _ in range(100):
            agent.policy.act(observation)

    times = alternate({"decide": decide, "window": lambda: episode(env)}, config.rounds)
    share = ratio(times, "decide", "window")
    return {
        "share of a window": {key: value / 100 for key, value in share.items()},
        "milliseconds per decision": 10 * statistics.median(times["decide"]),
        "goal": "< 0.01",
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
        f"{name}, {tokens} tokens a step": surface_price(config.cell_rounds, tokens, num_envs)
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
        f"{preset}, {tokens} tokens: with / without": feature_prices(preset, tokens, rounds)
        for preset, tokens, rounds in (
            ("nano", config.deployment_tokens, config.cell_rounds),
            ("cell11", config.meta_tokens, config.cell_rounds),
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
    """Runs every benchmark with each number of threads, and prints and writes the numbers."""
    config = configuration(BenchmarkConfig, "speed.run", __doc__, arguments)
    with refusals():
        check(config)

    results: dict[str, Any] = {"configuration": asdict(config) | {"out": str(config.out)}}
    results["facts"] = environment_facts({}, "")

    for threads in config.threads:
        torch.set_num_threads(threads)
        for benchmark in BENCHMARKS:
            if config.only and benchmark.__name__ not in config.only:
                continue
            name = f"{benchmark.__name__}, {threads} thread{'s' * (threads > 1)}"
            results[name] = benchmark(config)
            print(name, json.dumps(results[name], indent=1), flush=True)

    write_text(config.out, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
