"""Estimators of AdaptiveRL, section 1: trends and spread of the loss, without its units.

At a step with loss l, every run's exponential means (EMAs) become

    mean      <- (1 - b_l) mean + b_l l        change = mean - mean before it
    variance  <- (1 - b_v) variance + b_v (l - mean)^2
    S_l, S_v  <- EMAs of |change| and of |variance|

and the same for the reward r = -l, which the paper gives for language models. The paper states
neither the first values nor the betas of the scales. Here an EMA starts at its first value, so that
`mean` is the first loss, and S_l the size of the first change. The constant in the denominators is
relative, epsilon |mean| or epsilon mean^2. An absolute one, as in the paper, would depend on the
unit of the loss.

The numbers of the newest step are

    loss_trend = clip(change / S_l, -1, 1)     reward_trend likewise
    variance ratio = variance / S_v
    plateau = sigmoid((e_d - |loss_trend|) / s_d) sigmoid((e_v - variance ratio) / s_v)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.special import expit

from hpenv.arrays import BoolArray, FloatArray
from hpenv.checks import as_python, is_number, suggestion

#: Larger losses count as this one, so that no square is infinite.
LARGEST_LOSS = 1e100


@dataclass(frozen=True)
class Estimation:
    """Constants of the estimators.

    The betas are from AdaptiveRL, section 6: 0.01 to 0.03 stepwise, 0.2 to 0.4 epoch-wise. The
    paper has no numbers for the plateau score. With ours, a mean that stands still has one half at
    the usual variance, of ratio 1.
    """

    every: Literal["step", "window"] = "step"  # the losses are those of steps, or window means
    beta_loss: float = 0.02
    beta_reward: float = 0.02
    beta_variance: float = 0.02
    beta_scale: float = 0.02
    epsilon: float = 1e-8  # relative to the mean loss, or to its square
    plateau_trend: float = 0.25  # e_d: a larger trend is no plateau
    plateau_trend_slope: float = 0.1  # s_d
    plateau_variance: float = 1.0  # e_v: a larger variance ratio is no plateau
    plateau_variance_slope: float = 0.1  # s_v

    def __post_init__(self) -> None:
        """Checks the constants.

        Raises:
            ValueError: naming the field, what was given and what is accepted.
        """
        if self.every not in ("step", "window"):
            raise ValueError(f"every must be 'step' or 'window'; got {self.every!r}")
        for entry in fields(self):
            value = as_python(getattr(self, entry.name))
            if entry.name == "every":
                continue
            most = 1.0 if entry.name.startswith("beta") else np.inf
            least = 0.0 if entry.name in ("plateau_trend", "plateau_variance") else 1e-12
            if not (is_number(value) and least <= value <= most and np.isfinite(value)):
                raise ValueError(
                    f"{entry.name} of the estimators must be a finite number from {least} to "
                    f"{most}; got {value!r}"
                )
            object.__setattr__(self, entry.name, float(value))


_EPOCHWISE = dict.fromkeys(("beta_loss", "beta_reward", "beta_variance", "beta_scale"), 0.3)

#: Name -> estimators. `epochwise` reads the mean loss of a window, which is one epoch.
ESTIMATIONS: dict[str, Estimation] = {
    "stepwise": Estimation(),
    "epochwise": Estimation(every="window", **_EPOCHWISE),
}


def estimation_of(form: str | Mapping[str, Any]) -> Estimation:
    """Returns the constants of a name, or of a mapping of fields of Estimation.

    Raises:
        ValueError: for an unknown name or field, or a value that is out of range.
    """
    if isinstance(form, Mapping):
        known = [entry.name for entry in fields(Estimation)]
        if unknown := sorted(map(str, set(form) - set(known))):
            raise ValueError(
                f"unknown field {unknown[0]!r} of estimators; expected some of {known}"
                f"{suggestion(unknown[0], known)}"
            )
        return Estimation(**form)
    if not (isinstance(form, str) and form in ESTIMATIONS):
        raise ValueError(
            f"unknown estimators {form!r}; expected one of {sorted(ESTIMATIONS)}, or a mapping of "
            f"{[entry.name for entry in fields(Estimation)]}"
        )
    return ESTIMATIONS[form]


def estimation_values(form: str | Mapping[str, Any]) -> str | dict[str, Any]:
    """Returns a checked form of the estimators in JSON's types: a name, or all fields."""
    found = estimation_of(form)
    return form if isinstance(form, str) else asdict(found)


class Estimates(NamedTuple):
    """The numbers of the newest step of every run, (N,) each. All are 0 before the first."""

    loss_trend: FloatArray
    reward_trend: FloatArray
    loss_variance_ratio: FloatArray
    plateau: FloatArray

    @staticmethod
    def empty(num_rows: int) -> Estimates:
        """Returns the numbers of runs that are not estimated."""
        return Estimates(*(np.zeros(num_rows) for _ in Estimates._fields))


@dataclass(frozen=True)
class Estimators:
    """Exponential means of every run, (N,) each.

    Attributes:
        count: number of losses so far, as a float.
        mean_loss: mean loss.
        loss_change: its change by the newest loss.
        mean_reward: mean reward.
        reward_change: its change by the newest reward.
        variance: mean squared distance of the losses from the mean loss.
        loss_scale: mean size of `loss_change`.
        reward_scale: mean size of `reward_change`.
        variance_scale: mean size of `variance`.
    """

    count: FloatArray
    mean_loss: FloatArray
    loss_change: FloatArray
    mean_reward: FloatArray
    reward_change: FloatArray
    variance: FloatArray
    loss_scale: FloatArray
    reward_scale: FloatArray
    variance_scale: FloatArray

    @staticmethod
    def empty(num_rows: int) -> Estimators:
        """Returns the state of runs without a loss."""
        return Estimators(*(np.zeros(num_rows) for _ in fields(Estimators)))

    def with_reset(self, rows: BoolArray) -> Estimators:
        """Returns a state in which these rows have no loss yet."""
        return Estimators(**{key: np.where(rows, 0.0, value) for key, value in vars(self).items()})

    def with_losses(self, settings: Estimation, losses: FloatArray) -> Estimators:
        """Returns the state after the losses of some steps.

        Args:
            settings: the constants.
            losses: (S, N), in order. NaN where a run took no step.
        """
        state = self
        for step in np.clip(losses, -LARGEST_LOSS, LARGEST_LOSS):
            state = state._after(settings, step)
        return state

    def _after(self, settings: Estimation, losses: FloatArray) -> Estimators:
        """Returns the state after one loss per run, (N,), NaN where there is none."""
        rows = np.isfinite(losses)
        loss = np.where(rows, losses, 0.0)
        first, second = self.count == 0, self.count == 1

        def mean(old: FloatArray, new: FloatArray, beta: float, starts: BoolArray) -> FloatArray:
            return np.where(starts, new, (1.0 - beta) * old + beta * new)

        # Multiplied out, the changes would be differences of nearly equal numbers.
        loss_change = np.where(first, 0.0, settings.beta_loss * (loss - self.mean_loss))
        reward_change = np.where(first, 0.0, settings.beta_reward * (-loss - self.mean_reward))
        mean_loss = np.where(first, loss, self.mean_loss + loss_change)
        variance = mean(self.variance, np.square(loss - mean_loss), settings.beta_variance, first)
        scale = settings.beta_scale
        after = replace(
            self,
            count=self.count + 1.0,
            mean_loss=mean_loss,
            loss_change=loss_change,
            mean_reward=np.where(first, -loss, self.mean_reward + reward_change),
            reward_change=reward_change,
            variance=variance,
            loss_scale=mean(self.loss_scale, np.abs(loss_change), scale, second),
            reward_scale=mean(self.reward_scale, np.abs(reward_change), scale, second),
            variance_scale=mean(self.variance_scale, variance, scale, second),
        )
        return Estimators(
            **{key: np.where(rows, value, getattr(self, key)) for key, value in vars(after).items()}
        )

    def estimates(self, settings: Estimation) -> Estimates:
        """Returns the numbers of the newest step. They are 0 for runs without a loss."""
        loss_unit = settings.epsilon * np.abs(self.mean_loss)
        reward_unit = settings.epsilon * np.abs(self.mean_reward)
        variance_unit = settings.epsilon * np.square(self.mean_loss)
        loss_trend = _ratio(self.loss_change, self.loss_scale + loss_unit).clip(-1.0, 1.0)
        reward_trend = _ratio(self.reward_change, self.reward_scale + reward_unit).clip(-1.0, 1.0)
        ratio = _ratio(self.variance, self.variance_scale + variance_unit)
        is_flat = expit(
            (settings.plateau_trend - np.abs(loss_trend)) / settings.plateau_trend_slope
        )
        is_quiet = expit((settings.plateau_variance - ratio) / settings.plateau_variance_slope)
        plateau = np.where(self.count > 0, is_flat * is_quiet, 0.0)
        return Estimates(loss_trend, reward_trend, ratio, plateau)


def _ratio(values: FloatArray, scales: FloatArray) -> FloatArray:
    """Returns values / scales, and 0 where the scale is 0: nothing has changed yet."""
    return values / np.where(scales > 0.0, scales, np.inf)
