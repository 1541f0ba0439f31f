"""Training loops of other make on equal work, for `python -m speed.run`.

The model of all has 2 layers of width 64, over bytes, with AdamW and the same batch. hpenv's has no
biases and rotary positions. GPT-2's has biases, gains and learned positions.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import Trainer

from examples.deploy_nanogpt_loop import GPT, batch, text
from speed.operators import adamw_env, decide
from speed.timing import alternate, ratio
from train_agents.experiments.measures.trainers import make_arguments, make_model, make_optimizer

SEQUENCE_LENGTH = 64
NUM_STEPS = 40
#: Runs of the population that is compared with as many single runs.
NUM_ENVS = 8


def _nanogpt(rows: int) -> Callable[[], object]:
    """Returns steps of a plain loop with torch's fused AdamW."""
    model, data = GPT(length=SEQUENCE_LENGTH), text()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def run() -> None:
        for _ in range(NUM_STEPS):
            model(*batch(data, rows, SEQUENCE_LENGTH, generator)).backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def _trainer(rows: int) -> Callable[[], object]:
    """Returns steps of the Trainer of transformers on GPT-2, with its start-up."""
    model, data = make_model(2, 64, SEQUENCE_LENGTH), text()
    pieces = data[: NUM_STEPS * rows * SEQUENCE_LENGTH].view(-1, SEQUENCE_LENGTH)
    dataset = [{"input_ids": piece, "labels": piece} for piece in pieces]
    optimizer = make_optimizer(model, 1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            arguments = make_arguments(folder, NUM_STEPS, rows, seed=0)
            pair = (optimizer, scheduler)
            Trainer(model, arguments, train_dataset=dataset, optimizers=pair).train()

    return run


def _env(num_envs: int, tokens: int, rounds: int) -> Callable[[], object]:
    """Returns a decision of a population of `nano` with AdamW, of as many steps."""
    env = adamw_env(num_envs, tokens, SEQUENCE_LENGTH, NUM_STEPS, NUM_STEPS * (rounds + 2))
    return partial(decide, env, 1)


def peer_ratios(tokens: int, rounds: int) -> dict[str, Any]:
    """Compares steps of other loops to those of an env, and of a population per run.

    A decision of the env has NUM_STEPS steps and an evaluation of the probe, which the others lack.

    Args:
        tokens: batch of a step of one run [tokens].
        rounds: alternating rounds of NUM_STEPS steps.
    """
    rows = tokens // SEQUENCE_LENGTH
    functions = {
        "nanoGPT's form": _nanogpt(rows),
        "Trainer of transformers": _trainer(rows),
        "env": _env(1, tokens, rounds),
        "population": _env(NUM_ENVS, tokens, rounds),
    }
    times = alternate(functions, rounds)
    times["population, per run"] = [each / NUM_ENVS for each in times.pop("population")]
    found: dict[str, Any] = {
        f"{peer} / {own}": ratio(times, peer, own)
        for peer in ("nanoGPT's form", "Trainer of transformers")
        for own in ("env", "population, per run")
    }
    return found | {
        "milliseconds of a step": {
            name: 1e3 * statistics.median(each) / NUM_STEPS for name, each in times.items()
        }
    }
