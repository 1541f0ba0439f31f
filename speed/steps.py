"""Profile of a step of `nano`, for `python -m speed.run`: where the time of a population goes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from torch.profiler import ProfilerActivity, profile

from hpenv.envs.jel import make_vector_env
from speed.operators import decide

#: Operators that are matrix products.
PRODUCTS = frozenset(
    {
        "aten::mm",
        "aten::bmm",
        "aten::addmm",
        "aten::baddbmm",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
        "mkldnn::_linear_pointwise",
    }
)
#: A call of another operator is small below this time [us].
SMALL = 10.0
NUM_STEPS = 10


def step_profile(num_envs: int, batch_tokens: int) -> dict[str, Any]:
    """Returns fractions of the wall time of a step, with the profiler on.

    `products`, `passes` (other operators, at least SMALL microseconds a call) and `small calls`
    are self times of operators. `outside` is the rest: Python, and the profiler itself. The step
    without the profiler is timed apart.

    Args:
        num_envs: runs of the population, N.
        batch_tokens: batch of a step of one run [tokens].
    """
    env = make_vector_env(
        num_envs,
        batch_tokens=batch_tokens,
        num_steps=10 * NUM_STEPS,
        interval=NUM_STEPS,
        schedule="none",
        autoreset_mode="DISABLED",
    )
    env.reset(seed=0)
    decide(env, 1)
    start = time.perf_counter()
    decide(env, 1)
    plain = time.perf_counter() - start

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        decide(env, 1)
        wall = time.perf_counter() - start
    env.close()

    shares, calls, largest = _divide(profiler.key_averages(), 1e6 * wall)
    return {
        "milliseconds of a step": 1e3 * plain / NUM_STEPS,
        "milliseconds with the profiler": 1e3 * wall / NUM_STEPS,
        "calls of operators a step": calls / NUM_STEPS,
        "shares": shares | {"outside": 1.0 - sum(shares.values())},
        "largest": largest,
    }


def _divide(events: Iterable[Any], wall: float) -> tuple[dict[str, float], int, dict[str, float]]:
    """Returns the shares of three kinds of operators, the number of calls, and the largest."""
    shares = dict.fromkeys(("products", "passes", "small calls"), 0.0)
    calls, each = 0, {}
    for event in events:
        own = event.self_cpu_time_total
        calls += event.count
        if event.key in PRODUCTS:
            kind = "products"
        else:
            kind = "passes" if own / event.count >= SMALL else "small calls"
        shares[kind] += own / wall
        each[event.key] = own / wall
    largest = sorted(each.items(), key=lambda pair: -pair[1])[:8]
    return shares, calls, dict(largest)
