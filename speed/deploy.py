"""Price of an attached controller at the proportions of `jel-73m`, for `python -m speed.run`."""

from __future__ import annotations

import statistics
from functools import partial
from time import process_time
from typing import Any

import numpy as np
import torch

from agents.jel import JELAgent
from hpenv.arrays import Float32Array
from hpenv.deploy import Attachment, attach
from hpenv.lm import architecture, model
from hpenv.policies import Controller, ControllerSpec
from speed.timing import alternate, ratio, seconds

#: Steps of a decision (JEL, table 2).
EVERY = 50
SEQUENCE_LENGTH = 64
#: Batches of a step: that of this project's deployed runs, and the smaller one of the paper, that
#: of its meta-training (JEL, table 2) [tokens].
BATCHES = (512, 4096)
#: Every feature that an attached controller can have without a probe.
FULL = (
    "progress",
    "train_loss",
    "loss_slope",
    "loss_curvature",
    "loss_ema_deviation",
    "loss_trend",
    "reward_trend",
    "loss_variance_ratio",
    "plateau",
    "loss_exponent",
    "gradient_norm",
    "gradient_norm_spread",
    "gradient_agreement",
    "momentum_norm",
    "update_ratio",
    "update_alignment",
    "position",
)


class _Still:
    """A controller that observes everything and changes nothing."""

    spec = ControllerSpec([["lr", "group"]], list(FULL), EVERY)

    def reset(self, columns: Any) -> None:
        self._size = len(columns.action_names)

    def act(self, observations: np.ndarray) -> Float32Array:
        return np.zeros((1, self._size), np.float32)


def _optimizer(weights: architecture.Parameters) -> torch.optim.AdamW:
    """Returns a fused AdamW with one group per kind of parameter, each with a gradient."""
    generator = torch.Generator().manual_seed(0)
    groups: dict[str, list[torch.Tensor]] = {}
    for name, weight in weights.items():
        parameter = weight[0].detach().clone().requires_grad_()
        parameter.grad = 1e-3 * torch.randn(parameter.shape, generator=generator)
        groups.setdefault(architecture.parameter_kind(name), []).append(parameter)
    named = [{"name": name, "params": parameters} for name, parameters in groups.items()]
    return torch.optim.AdamW(named, lr=1e-6, fused=True)


def _steps(optimizer: torch.optim.Optimizer, attachment: Attachment | None) -> None:
    """Takes the steps of one decision, with the same gradients."""
    loss = torch.tensor(3.0)
    for _ in range(EVERY):
        if attachment is not None:
            attachment.observe(loss)
        optimizer.step()


def _backward_seconds(weights: architecture.Parameters, tokens: int, rounds: int) -> float:
    """Returns the median processor time of a forward and a backward pass [s]."""
    config = architecture.preset("jel-73m")
    rope = model.rope_tables(config, SEQUENCE_LENGTH, "cpu")
    leaves = {name: weight.requires_grad_() for name, weight in weights.items()}
    shape = (1, tokens // SEQUENCE_LENGTH, SEQUENCE_LENGTH)
    text = torch.randint(0, config.vocab_size, shape, generator=torch.Generator().manual_seed(0))

    def run() -> None:
        losses = model.mean_losses(leaves, config, text, text, rope)
        torch.autograd.grad(losses.sum(), list(leaves.values()))

    run()
    return statistics.median(seconds(run, process_time) for _ in range(rounds))


def attachment_price(rounds: int) -> dict[str, Any]:
    """Compares 50 steps of an optimizer with a controller to those without.

    The optimizer's steps are timed alone, since everything that a controller costs is in them and
    in `observe`. The forward and the backward pass are timed apart, and added to both sides.

    Args:
        rounds: alternating rounds of one decision.

    Returns:
        For JEL and for a controller with every feature: the ratio of whole steps at each batch, and
        that of the optimizer's steps alone. Then the goals.
    """
    weights = architecture.init_parameters(architecture.preset("jel-73m"), [0])
    # A pass over many tokens takes half a minute, and is timed once.
    backward = {n: _backward_seconds(weights, n, max(1, 1536 // n)) for n in BATCHES}
    controllers: dict[str, Controller] = {"JEL": JELAgent(1, 2).policy, "every feature": _Still()}
    pairs = {"JEL": [("lr", "run"), ("weight_decay", "run")], "every feature": None}
    optimizers = {name: _optimizer(weights) for name in ("none", *controllers)}
    attachments: dict[str, Attachment | None] = {"none": None}
    for name, controller in controllers.items():
        attachments[name] = attach(
            optimizers[name],
            controller,
            total_steps=EVERY * (rounds + 2),
            every=EVERY,
            channels=pairs[name],
        )

    times = alternate(
        {name: partial(_steps, optimizers[name], attachments[name]) for name in optimizers},
        rounds,
        process_time,
    )
    found: dict[str, Any] = {}
    for tokens, passes in backward.items():
        whole = {name: [t + EVERY * passes for t in taken] for name, taken in times.items()}
        for name in controllers:
            found[f"{tokens} tokens a step: {name} / none"] = ratio(whole, name, "none")
        found[f"{tokens} tokens a step: milliseconds of both passes"] = 1e3 * passes
    for name in controllers:
        found[f"steps of the optimizer alone: {name} / none"] = ratio(times, name, "none")
    found["milliseconds of an optimizer's step"] = 1e3 * statistics.median(times["none"]) / EVERY
    return found | {"goal": "JEL <= 1.003, every feature <= 1.03"}
