"""Credits from estimated effects of cells: a control variate of REINFORCE, or the credit itself.

The effect e of a cell is the decrease of a loss per unit of its position, to first order. To first
order the cell earns e (raw - mean). Of that the expectation times the score is known without a
sample: it is e.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from agents.base import Rollout
from agents.credits import Advantages, CreditStream, LinearPart
from agents.returns import STD_EPSILON, BoolArray, FloatArray, corrected_mean
from agents.sidecar_config import CreditName, SidecarConfig

#: Added to a root mean square of effects. Effects are far smaller than rewards.
SMALLEST_RMS = 1e-12


class ControlledStream:
    """A CreditStream whose credits have a control variate, from the cells' effects in the past.

    Let e be the mean of a cell's effects before a decision. The credit is reduced by
    e (raw - mean), and the expectation of that times the score, e, is added to the gradient as it
    is. The sample of the decision is independent of e, so the expectation of the gradient does not
    change, whether the effects are right or wrong. (A control variate from the effects of the
    decision itself would depend on the sample, and bias it.) If e is right, the variance falls by
    that of e (raw - mean): by the noise of exploration, and not by that of the batches.

    Args: those of CreditStream.
    """

    def __init__(self, num_rows: int, immediate: Sequence[bool], config: SidecarConfig) -> None:
        self._inner = CreditStream(num_rows, immediate, config)
        self._decay = config.effect_decay
        size = (num_rows, len(immediate))
        self._mean, self._count = np.zeros(size), np.zeros((num_rows, 1))
        self._waiting = np.zeros((0, 2, *size))  # e x std, and noise, the oldest first

    @property
    def num_waiting(self) -> int:
        """Number of decisions whose credit is not complete."""
        return self._inner.num_waiting

    @property
    def span(self) -> int:
        """Number of decisions from a decision to the last reward of its credit."""
        return self._inner.span

    def push(
        self, rewards: FloatArray, alive: BoolArray, part: LinearPart | None = None
    ) -> Advantages | None:
        """Adds rewards and effects of the newest decision. See CreditStream.push."""
        assert part is not None, "effects"
        past = corrected_mean(self._mean, self._count, self._decay)
        waiting = np.concatenate([self._waiting, np.stack([past * part.std, part.noise])[None]])
        taken = alive[:, None]
        mixed = self._decay * self._mean + (1.0 - self._decay) * part.effects
        self._mean = np.where(taken, mixed, self._mean)
        self._count = self._count + taken

        slope, noise = waiting[0]
        found = self._inner.push(rewards, alive, controls=slope * noise)
        self._waiting = waiting if found is None else waiting[1:]
        if found is None:
            return None
        known = found.rms > 0.0  # before the first baseline nothing is learned
        slopes = np.where(known & taken, slope / (found.rms + STD_EPSILON), 0.0)
        bound = self._inner.bound
        return found._replace(slopes=(np.clip(slopes, -bound, bound),))

    def restart(self) -> None:
        """Drops the waiting decisions, whose runs have ended. Means and mean squares stay."""
        self._inner.restart()
        self._waiting = self._waiting[:0]

    def arrays(self) -> dict[str, FloatArray]:
        """Returns copies of the state that the next push depends on."""
        own = {"effects": self._mean, "effect_count": self._count, "parts": self._waiting}
        return self._inner.arrays() | {name: value.copy() for name, value in own.items()}

    def restore(self, arrays: Mapping[str, FloatArray]) -> None:
        """Restores the state that `arrays` returned."""
        self._inner.restore(arrays)
        self._mean, self._count = arrays["effects"].copy(), arrays["effect_count"].copy()
        self._waiting = arrays["parts"].copy()


class EstimateStream:
    """Takes the estimated effects of the cells as their credits, and does not read the rewards.

    The credit of a cell is e (raw - mean), of the effect e that was estimated after the decision.
    Its expectation times the score is e, so that no sample is needed: the advantages are 0, and the
    slopes are e std, divided by their root mean square so far, and bounded.

    Args: those of CreditStream. `immediate`, `delay`, `horizon` and the baseline are not read.
    """

    num_waiting = span = 0

    def __init__(self, num_rows: int, immediate: Sequence[bool], config: SidecarConfig) -> None:
        self._config = config
        self._square = np.zeros((num_rows, len(immediate)))
        self._count = np.zeros((num_rows, 1))

    def push(
        self, rewards: FloatArray, alive: BoolArray, part: LinearPart | None = None
    ) -> Advantages:
        """Adds the effects of the newest decision, and returns its advantages."""
        assert part is not None, "effects"
        decay, bound = self._config.scale_decay, self._config.advantage_clip
        taken = alive[:, None]
        credits = np.where(taken, part.effects * part.std, 0.0)
        mixed = decay * self._square + (1.0 - decay) * credits**2
        self._square = np.where(taken, mixed, self._square)
        self._count = self._count + taken
        rms = np.sqrt(corrected_mean(self._square, self._count, decay))
        slopes = np.clip(credits / (rms + SMALLEST_RMS), -bound, bound)
        zeros = np.zeros_like(credits)
        return Advantages(zeros, credits, zeros, rms, (slopes,))

    def restart(self) -> None:
        """Does nothing: no decision waits."""

    def arrays(self) -> dict[str, FloatArray]:
        """Returns copies of the state that the next push depends on."""
        return {"square": self._square.copy(), "square_count": self._count.copy()}

    def restore(self, arrays: Mapping[str, FloatArray]) -> None:
        """Restores the state that `arrays` returned."""
        self._square, self._count = arrays["square"].copy(), arrays["square_count"].copy()


Stream = CreditStream | ControlledStream | EstimateStream
#: Name of a credit -> its stream.
STREAMS: dict[CreditName, type[Stream]] = {
    "reward": CreditStream,
    "control_variate": ControlledStream,
    "estimate": EstimateStream,
}


def linear_parts(
    rollout: Rollout,
    noise: torch.Tensor,
    log_std: torch.Tensor,
    common: Sequence[int],
    credit: CreditName,
) -> list[LinearPart] | list[None]:
    """Returns effects, noise and standard deviations of T decisions, None if they are not read.

    Args:
        rollout: T decisions of N runs with their effects.
        noise: (raw - mean) / std, (N, T, M).
        log_std: logarithm of std, (N, T, M).
        common: group of each cell, (A,), whose Gaussian is added to that of the cell. Or empty.
        credit: name of the credit.

    Raises:
        ValueError: the rollout has no effects, or those of another number of cells.
    """
    T, N = rollout.rewards.shape
    if credit == "reward":
        return [None] * T
    num_groups = max(common, default=-1) + 1
    expected = (T, N, noise.shape[-1] - num_groups)
    effects = np.zeros(0) if rollout.effects is None else rollout.effects
    if effects.shape != expected:
        given = None if rollout.effects is None else effects.shape
        raise ValueError(
            f"rollout.effects must have shape {expected} with the credit {credit!r}; got {given}"
        )
    effects = np.where(rollout.alive[..., None], effects, 0.0)
    if common:  # the Gaussian of a group moves all its cells
        members = np.array(common)[:, None] == np.arange(num_groups)  # (A, K)
        effects = np.concatenate([effects, effects @ members.astype(np.float64)], axis=-1)
    samples, stds = (part.double().numpy().swapaxes(0, 1) for part in (noise, torch.exp(log_std)))
    return [LinearPart(effects[t], samples[t], stds[t]) for t in range(T)]
