"""AdaptiveRL's control law for the learning rate, the momentum and the exploration noise.

The laws are functions of arrays. `AdaptiveRL` is the controller that applies them, one decision
after the other, in an environment whose actions are moves. Both are one concept, so that the module
is longer than 300 lines.

References:
    "AdaptiveRL: a control-theoretic scheduler for alpha, mu, sigma", sections 2, 3 and 6. The
    departures are listed where they are made: the damping of `Law`, whose form the paper leaves
    open, and the floor of the noise, since its logarithm has no value at the paper's smallest
    sigma, 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch

from hpenv.arrays import Float32Array, FloatArray
from hpenv.checks import as_python, is_count, is_number, suggestion
from hpenv.control.channels import CHANNELS
from hpenv.control.moves import moves_of_factors
from hpenv.policies.controller import Columns, ControllerSpec
from hpenv.policies.policy import as_observations

FEATURES = ("progress", "loss_trend", "reward_trend", "plateau", "position")
NOISES = ("exploration", "weight_noise")

#: Gains that read the reward's trend, and those that read the loss's, for the ablations.
REWARD_GAINS = ("rate_reward", "momentum_reward", "noise_reward")
LOSS_GAINS = ("rate_loss", "momentum_loss")


@dataclass(frozen=True)
class Law:
    """Gains, bounds and caps of the law.

    A gain is the largest change of a logarithm or logit by its trend at one decision. The defaults
    are in the middle of the paper's ranges (section 6). Its bounds of the learning rate are for
    GPT-2-small. Here they are factors of the base rate, wide enough for a base rate that is wrong.

    Damping is ours (section 3: "reduce gains if you see hunting"). A run's gains of the rate are
    multiplied by d. At each decision that moves the rate, d <- max(smallest, d damping) if the move
    has the other sign than the move before it, and else d <- min(1, d recovery). A rate that is
    steadily moved has d = 1, and one that goes to and fro every time has the smallest.
    """

    rate_reward: float = 0.05  # k_r of 0.02 to 0.08
    rate_loss: float = 0.05  # k_l, as k_r
    momentum_reward: float = 0.03  # k_mu_r of 0.01 to 0.05
    momentum_loss: float = 0.04  # k_mu_l of 0.02 to 0.06
    noise_plateau: float = 0.08  # k_sigma_P of 0.05 to 0.1
    noise_reward: float = 0.06  # k_sigma_r of 0.04 to 0.08
    rate_bounds: tuple[float, float] = (0.01, 100.0)  # of the factor of the base rate
    momentum_bounds: tuple[float, float] = (0.85, 0.99)  # of the momentum
    noise_bounds: tuple[float, float] = (0.01, 0.2)  # of `exploration`, off at the first
    rate_caps: tuple[float, float] = (0.9, 1.2)  # smallest and largest factor of a decision
    base_momentum: float = 0.9  # of the optimizer, which the law moves from
    damping: float = 0.7  # 1: no damping
    recovery: float = 1.2
    least_gain: float = 0.1  # smallest d

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            ValueError: naming the field, what was given and what is accepted.
        """
        for entry in fields(self):
            value = as_python(getattr(self, entry.name))
            if entry.name.endswith(("bounds", "caps")):
                value = tuple(value) if isinstance(value, Sequence) else ()
                fits = len(value) == 2 and all(map(is_number, value)) and 0 < value[0] < value[1]
                condition = "two numbers above 0, the smaller first"
            else:
                fits = is_number(value) and math.isfinite(value) and value >= 0
                condition = "a number of at least 0"
            if not fits:
                raise ValueError(f"{entry.name} must be {condition}; got {value!r}")
            object.__setattr__(self, entry.name, value)

        low, high = self.momentum_bounds
        if not (low <= self.base_momentum <= high < 1):
            raise ValueError(
                "momentum_bounds must be below 1 and hold base_momentum; "
                f"got {self.momentum_bounds} and {self.base_momentum}"
            )
        if not (0 < self.damping <= 1 <= self.recovery and 0 < self.least_gain <= 1):
            raise ValueError(
                "damping and least_gain must be in (0, 1], and recovery at least 1; "
                f"got {self.damping}, {self.least_gain} and {self.recovery}"
            )
        if not self.rate_caps[0] <= 1 <= self.rate_caps[1]:
            raise ValueError(f"rate_caps must have 1 between them; got {self.rate_caps}")


def logit(probability: float) -> float:
    """Returns log(p / (1 - p))."""
    return math.log(probability / (1.0 - probability))


def move_rate(
    log_rate: FloatArray,
    loss_trend: FloatArray,
    reward_trend: FloatArray,
    law: Law,
    gain: FloatArray | float = 1.0,
) -> FloatArray:
    """Returns the logarithm of the next learning rate, as a factor of the base rate.

    log a + gain (k_r reward_trend - k_l max(loss_trend, 0)), within the caps of a decision and then
    within the bounds. A rate that is out of bounds is put to the nearest bound.

    Args:
        log_rate: logarithm of the present factor, (N,).
        loss_trend: normalized trend of the loss, (N,) in [-1, 1].
        reward_trend: normalized trend of the reward, (N,) in [-1, 1].
        law: gains, bounds and caps.
        gain: multiplier of both gains, (N,) or one.
    """
    change = law.rate_reward * reward_trend - law.rate_loss * np.maximum(loss_trend, 0.0)
    change = np.clip(gain * change, math.log(law.rate_caps[0]), math.log(law.rate_caps[1]))
    return np.clip(log_rate + change, math.log(law.rate_bounds[0]), math.log(law.rate_bounds[1]))


def move_momentum_logit(
    logit_momentum: FloatArray, loss_trend: FloatArray, reward_trend: FloatArray, law: Law
) -> FloatArray:
    """Returns the logit of the next momentum, (N,).

    logit m + k_mu_r reward_trend - k_mu_l max(loss_trend, 0), within the bounds. See `move_rate`.
    """
    change = law.momentum_reward * reward_trend - law.momentum_loss * np.maximum(loss_trend, 0.0)
    low, high = law.momentum_bounds
    return np.clip(logit_momentum + change, logit(low), logit(high))


def move_noise(
    log_noise: FloatArray, plateau: FloatArray, reward_trend: FloatArray, law: Law
) -> FloatArray:
    """Returns the logarithm of the next noise, (N,).

    log s + k_s_P plateau - k_s_r max(reward_trend, 0), within the bounds. At the low bound, which
    is the channel's floor, the noise is off. Its logarithm is that of the floor there, so that the
    next plateau can raise it again. `plateau` is in [0, 1].
    """
    change = law.noise_plateau * plateau - law.noise_reward * np.maximum(reward_trend, 0.0)
    low, high = law.noise_bounds
    return np.clip(log_noise + change, math.log(low), math.log(high))


def next_gain(gain: FloatArray, sign: FloatArray, previous: FloatArray, law: Law) -> FloatArray:
    """Returns the multiplier of the rate's gains after a move, (N,). See `Law`.

    Args:
        gain: present multiplier, (N,).
        sign: sign of the move, 0 for none, (N,).
        previous: sign of the last move that was not 0, or 0 before the first, (N,).
        law: damping, recovery and smallest gain.
    """
    turned, steady = sign * previous < 0, sign * previous > 0
    gain = np.where(turned, np.maximum(law.least_gain, gain * law.damping), gain)
    return np.where(steady, np.minimum(1.0, gain * law.recovery), gain)


def _law_of(values: Mapping[str, Any], noise: str | None) -> Law:
    """Returns the law with these fields, and the bounds of the noise's channel if it has none."""
    known = [entry.name for entry in fields(Law)]
    if unknown := sorted(map(str, set(values) - set(known))):
        raise ValueError(
            f"unknown field {unknown[0]!r} of the law; expected some of {known}"
            f"{suggestion(unknown[0], known)}"
        )
    if noise is None:
        return Law(**values)
    dial = CHANNELS[noise]
    return Law(**{"noise_bounds": (dial.floor, dial.bounds[1])} | dict(values))


def _with_signals(law: Law, signals: str) -> Law:
    """Returns the law of an ablation."""
    off: tuple[str, ...] = {"both": (), "loss": REWARD_GAINS, "reward": LOSS_GAINS}[signals]
    zeros: dict[str, Any] = dict.fromkeys(off, 0.0)
    return replace(law, **zeros)


def _largest_factors(law: Law) -> list[tuple[float, float]]:
    """Returns the smallest and largest factor of rate, momentum odds and noise in a decision."""
    return [
        law.rate_caps,
        (math.exp(-law.momentum_reward - law.momentum_loss), math.exp(law.momentum_reward)),
        (math.exp(-law.noise_reward), math.exp(law.noise_plateau)),
    ]


class AdaptiveRL:
    """The control law of AdaptiveRL as a controller of a run's rate, momentum and noise.

    The position that the environment shows is the state of each dial, so the law goes on from
    wherever the environment's bounds have put it. The rest of the state is the damping of each run,
    which starts anew where the progress is 0.

    The scheduler is replaced with the id's argument `schedule="none"`, and modulated with another
    schedule.

    Args:
        law: gains, bounds and caps, or a mapping with some of them. Without bounds of the noise, a
            mapping has those of the channel.
        pace: `stepwise`: trends of the losses of steps. `epochwise`: of the means of windows.
        interval: steps per decision [steps]. In the pace `epochwise` it is an epoch.
        signals: `both`, or the ablations `loss` and `reward`: gains of the other trend are 0.
        noise: `exploration` (of gradients), `weight_noise`, or None for neither.

    Raises:
        ValueError: an argument is out of its range.

    References:
        AdaptiveRL, sections 2 to 6 and 8. Its interval is 10 to 20 steps.
    """

    def __init__(
        self,
        law: Law | Mapping[str, Any] | None = None,
        pace: str = "stepwise",
        interval: int = 10,
        signals: str = "both",
        noise: str | None = "exploration",
    ) -> None:
        for name, value, accepted in (
            ("pace", pace, ("stepwise", "epochwise")),
            ("signals", signals, ("both", "loss", "reward")),
            ("noise", noise, (*NOISES, None)),
        ):
            if value not in accepted:
                raise ValueError(f"{name} must be one of {list(accepted)}; got {value!r}")
        if not is_count(interval):
            raise ValueError(f"interval must be a whole number of at least 1; got {interval!r}")

        self._law = law if isinstance(law, Law) else _law_of({} if law is None else law, noise)
        self._pace, self._interval, self._signals, self._noise = pace, interval, signals, noise
        names = ("lr", "momentum") if noise is None else ("lr", "momentum", noise)
        self.action_size = len(names)
        self._channels = [CHANNELS[name] for name in names]
        self._applied = _with_signals(self._law, signals)
        self._check_bounds()

        self._gain: FloatArray = np.ones(0)
        self._sign: FloatArray = np.zeros(0)

        largest = zip(names, _largest_factors(self._law), strict=False)
        self._largest = np.array([moves_of_factors(name, *pair) for name, pair in largest])
        self.spec = ControllerSpec(
            channels=[[name, "run"] for name in names],
            observation=list(FEATURES),
            interval=interval,
            mapping="move",
            max_moves={
                name: list(pair) for name, pair in zip(names, self._largest.tolist(), strict=True)
            },
            estimators=pace,
        )

    def _check_bounds(self) -> None:
        odds = [
            logit(bound) - logit(self._law.base_momentum) for bound in self._law.momentum_bounds
        ]
        asked = [self._law.rate_bounds, tuple(map(math.exp, odds)), self._law.noise_bounds]
        for dial, (low, high) in zip(self._channels, asked, strict=False):
            lowest = dial.floor or dial.bounds[0]
            if low < lowest * (1 - 1e-9) or high > dial.bounds[1] * (1 + 1e-9):
                raise ValueError(
                    f"the law's bounds must be within those of the channel {dial.name!r}, "
                    f"{lowest} to {dial.bounds[1]} {dial.unit}; got {low} to {high}"
                )

    def reset(self, columns: Columns) -> None:
        """Starts at the full gains."""
        self._gain, self._sign = np.ones(columns.num_runs), np.zeros(columns.num_runs)

    def state(self) -> dict[str, FloatArray]:
        """Returns multipliers of the gains, and signs of the last moves, (N,) each."""
        return {"gain": self._gain, "sign": self._sign}

    def set_state(self, arrays: Mapping[str, FloatArray]) -> None:
        """Continues from the arrays of `state`."""
        self._gain, self._sign = np.array(arrays["gain"]), np.array(arrays["sign"])

    def act(self, observations: np.ndarray) -> Float32Array:
        """Returns moves (N, A) at observations (N, 4 + A), whose columns are those of FEATURES."""
        batch = as_observations(observations, len(FEATURES) - 1 + self.action_size)
        progress, loss_trend, reward_trend, plateau = batch[:, :4].T.astype(np.float64)
        if len(self._gain) != len(batch):
            self._gain, self._sign = np.ones(len(batch)), np.zeros(len(batch))
        fresh = progress == 0
        self._gain, self._sign = np.where(fresh, 1.0, self._gain), np.where(fresh, 0.0, self._sign)

        positions = batch[:, 4:].T.astype(np.float64)  # (A, N)
        logs = [
            np.log(np.maximum(dial.values(own), dial.floor))
            for dial, own in zip(self._channels, positions, strict=True)
        ]
        return self._moves(logs, loss_trend, reward_trend, plateau)

    def _moves(
        self,
        logs: list[FloatArray],
        loss_trend: FloatArray,
        reward_trend: FloatArray,
        plateau: FloatArray,
    ) -> Float32Array:
        """Returns the moves that take the logarithms of the factors to those of the law."""
        law = self._applied
        base = logit(law.base_momentum)
        wanted = [
            move_rate(logs[0], loss_trend, reward_trend, law, self._gain),
            move_momentum_logit(base + logs[1], loss_trend, reward_trend, law) - base,
        ]
        if self._noise is not None:
            wanted.append(move_noise(logs[2], plateau, reward_trend, law))

        sign = np.sign(wanted[0] - logs[0])
        self._gain = next_gain(self._gain, sign, self._sign, law)
        self._sign = np.where(sign == 0, self._sign, sign)

        moves = []
        for dial, log, goal, (down, up) in zip(
            self._channels, logs, wanted, self._largest, strict=True
        ):
            change = dial.move_of(math.e) * (goal - log)
            largest = np.maximum(np.where(change < 0, down, up), 1e-12)
            moves.append(np.clip(change / largest, -1.0, 1.0))
        return np.stack(moves, axis=1).astype(np.float32)

    def arguments(self) -> dict[str, Any]:
        """Returns the constructor's arguments, JSON-able."""
        return {
            "law": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in asdict(self._law).items()
            },
            "pace": self._pace,
            "interval": self._interval,
            "signals": self._signals,
            "noise": self._noise,
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns no tensors. The state of the runs is not part of the policy."""
        return {}

    @classmethod
    def from_state(cls, arguments: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Self:
        """Returns the policy with these `arguments`."""
        return cls(**arguments)
