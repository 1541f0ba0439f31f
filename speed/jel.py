"""Speed of TrainLoop-JEL-v0, its populations and its controller, for `python -m speed.run`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial
from time import process_time
from typing import Any

import numpy as np
import torch

from agents.jel import JELAgent
from hpenv.env import TrainLoopVectorEnv
from hpenv.envs.jel import make_vector_env
from hpenv.lm import architecture
from speed.config import BenchmarkConfig
from speed.plain import plain_loop
from speed.populations import divided_population
from speed.timing import alternate, ratio

#: Number of episodes of a meta-training: 50 updates of 8 (JEL, table 2).
META_EPISODES = 400


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
        schedule="none",
        **{"interval": min(50, steps)} | more,
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
    """Compares decisions of 10 steps to as many steps of a plain loop, in processor time.

    Both measure the probe after them. The goal is at most 1.03.
    """
    found = {}
    for tokens in (config.deployment_tokens, config.meta_tokens):
        rounds, interval = 3 * config.price_rounds, 10
        env = make(1, config, tokens, interval * (rounds + 2), interval=interval)
        env.reset(seed=0)
        plain, still = plain_loop(interval, tokens), np.zeros((1, 2), np.float32)
        next(plain)
        times = alternate(
            {"env": partial(env.step, still), "plain": partial(next, plain)}, rounds, process_time
        )
        found[f"{tokens} tokens a step: env / plain loop"] = ratio(times, "env", "plain")
    return found | {"goal": f"<= 1.03 at {config.deployment_tokens}"}


def population_speedup(config: BenchmarkConfig) -> dict[str, Any]:
    """Compares 8 single runs in sequence to a population of 8, at meta-training size.

    The goal is at least 2.
    """
    steps = max(1, config.num_steps // 2)
    eight, one = (make(n, config, config.meta_tokens, steps) for n in (8, 1))
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
    steps = max(1, config.num_steps // 2)
    plain, compiled = (
        make(8, config, config.meta_tokens, steps, compile=each) for each in (False, True)
    )
    times = alternate(
        {"plain": lambda: episode(plain), "compiled": lambda: episode(compiled)}, config.rounds
    )
    return {"plain / compiled": ratio(times, "plain", "compiled")}


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
