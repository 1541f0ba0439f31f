"""Measures what the project claims about speed: `python -m benchmarks.run`.

Every figure is a ratio of medians of rounds that alternate within one process, so that a machine that drifts drifts
for both sides.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.grpo import JELAgent
from benchmarks.plain import plain_loop
from hpenv import model
from hpenv.env import TrainLoopVectorEnv
from hpenv.envs.jel import make_vector_env
from train_agents.results import environment_facts

#: 400 episodes: 50 updates of 8 (JEL, table 2).
META_EPISODES = 400


@dataclass(frozen=True)
class BenchmarkConfig:
    """Sizes of the benchmarks."""

    out: Path = Path("results/benchmarks.json")  # JSON with every number
    rounds: int = 7  # alternating rounds per ratio; the median is reported
    num_steps: int = 100  # of a timed run [steps]
    meta_tokens: int = 128  # of a step in meta-training [tokens]
    deployment_tokens: int = 512  # of a step of a deployed run [tokens]


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock time of one call [s]."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def alternate(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Times of each function over alternating rounds, after one round that is not counted [s]."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(seconds(function))
    return times


def ratio(times: dict[str, list[float]], above: str, below: str) -> dict[str, float]:
    """Median, smallest and largest of the rounds' ratios."""
    ratios = [a / b for a, b in zip(times[above], times[below], strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def make(num_envs: int, config: BenchmarkConfig, batch_tokens: int, num_steps: int | None = None) -> TrainLoopVectorEnv:
    """A vector env of `num_envs` rows of `nano`."""
    steps = config.num_steps if num_steps is None else num_steps
    return make_vector_env(
        num_envs,
        autoreset_mode="DISABLED",
        batch_tokens=batch_tokens,
        num_steps=steps,
        interval=min(50, steps),
        schedule="none",
    )


def episode(env: TrainLoopVectorEnv) -> None:
    """One episode with neutral actions."""
    env.reset(seed=0)
    for _ in range(env.num_decisions):
        env.step(np.zeros((env.num_envs, len(env.action_names)), np.float32))


def episodes(env: TrainLoopVectorEnv, count: int) -> None:
    """Episodes one after the other."""
    for _ in range(count):
        episode(env)


def env_overhead(config: BenchmarkConfig) -> dict[str, Any]:
    """Env stepping against a plain loop; goal: at most 1.03."""
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
    """A population of 8 against 8 single runs, one after the other, at meta-training size; goal: at least 2."""
    eight, one = make(8, config, config.meta_tokens), make(1, config, config.meta_tokens)
    times = alternate({"single": lambda: episodes(one, 8), "population": lambda: episode(eight)}, config.rounds)
    return {"8 single runs / population of 8": ratio(times, "single", "population"), "goal": ">= 2"}


def achieved_flops(config: BenchmarkConfig) -> dict[str, Any]:
    """Arithmetic of a step at deployment size against a 2048 x 2048 product, in the same rounds; goal: over half."""
    shape = model.PRESETS["nano"]
    flops = model.flops_per_token(shape, 64) * config.deployment_tokens + muon_flops(shape)
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


def muon_flops(shape: model.GPTConfig) -> float:
    """Operations of five Newton-Schulz steps on every matrix of one run [FLOP]."""
    total = 0.0
    for name, (rows, columns) in ((n, s) for n, s in model.parameter_shapes(shape).items() if len(s) == 2):
        if model.parameter_kind(name) == "matrix":
            short, long = min(rows, columns), max(rows, columns)
            total += 5 * (2 * 2 * short * short * long + 2 * short**3)
    return total


def run_equivalents(config: BenchmarkConfig) -> dict[str, Any]:
    """Meta-training of 400 episodes in deployed runs, by the ratio of their tokens; the goal at 128 is the paper's 5.6.

    Measured on shortened runs, and extrapolated: both sides grow alike with the number of steps, but for the reset and
    the first probe, which weigh more in a short run.
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
    """Deciding against training for one interval of a deployed run; the paper's is under 1 %."""
    env = make(1, config, config.deployment_tokens, num_steps=50)
    agent = JELAgent(1, 2)
    observation = np.zeros((1, 1), np.float32)

    def decide() -> None:
        for _ in range(100):
            agent.act(observation, deterministic=True)

    times = alternate({"decide": decide, "window": lambda: episode(env)}, config.rounds)
    share = ratio(times, "decide", "window")
    return {"share of a window": {key: value / 100 for key, value in share.items()},
            "milliseconds per decision": 10 * statistics.median(times["decide"]), "goal": "< 0.01"}  # fmt: skip


def main() -> None:
    """Runs every benchmark at one and at two threads, prints and writes the numbers."""
    import tyro

    config = tyro.cli(BenchmarkConfig, description=__doc__)
    results: dict[str, Any] = {"configuration": asdict(config) | {"out": str(config.out)}}
    results["facts"] = environment_facts({}, "")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for benchmark in (env_overhead, population_speedup, achieved_flops, run_equivalents, controller_overhead):
            name = f"{benchmark.__name__}, {threads} thread{'s' * (threads > 1)}"
            results[name] = benchmark(config)
            print(name, json.dumps(results[name], indent=1), flush=True)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
