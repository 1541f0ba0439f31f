"""The baselines of the benchmark: coordinates, first values, and the arguments that they change.

Every baseline is searched with RUNS runs on an instance. Its entry in FIELD names the search, which
is an entry of `baselines.searches.SEARCHES`. Rates, decays and schedules are arguments of the
plant, true at every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from baselines.schedules import (
    BASELINES,
    groups_of,
    hand_tuned_rates,
    nanochat_rates,
    schedule_free,
)
from baselines.trials import Point
from hpenv.benchmark.instances import Instance
from hpenv.policies.adaptive_rates import AdaLRS, Hypergradient, UpdateRatio
from hpenv.policies.controller import Controller

#: First learning rate of a search over one rate for all tensors.
FIRST_LR = 0.01
#: Smallest and largest rate of a searched schedule.
BOUNDS = (FIRST_LR / 100.0, FIRST_LR * 100.0)
#: Number of knots of a searched schedule, evenly spaced over the run.
NUM_KNOTS = 4
#: Number of equal parts of a run, between which population-based training copies and mutates.
NUM_PARTS = 10


@dataclass(frozen=True)
class Baseline:
    """A baseline and its search.

    Attributes:
        doc: what it is, with its source.
        start: coordinate -> first value.
        arguments: function from an instance and a point to the arguments that it changes.
        controller: function from an instance and a point to the controller that acts, or None.
        search: key of `baselines.searches.SEARCHES`. A coordinate search has one coordinate.
    """

    doc: str
    start: Mapping[str, float]
    arguments: Callable[[Instance, Point], dict[str, Any]]
    controller: Callable[[Instance, Point], Controller] | None = None
    search: str = "coordinate"


def _one_rate(schedule: Any, instance: Instance, point: Point) -> dict[str, Any]:
    """Returns one learning rate for all tensors, under a schedule."""
    return {"base_lr": point["lr"], "schedule": schedule}


def _scaled(
    rates: Callable[[str], dict[str, dict[str, float]]], instance: Instance, point: Point
) -> dict[str, Any]:
    """Returns known rates of every group times one factor, under the paper's schedule."""
    found = rates("nano")
    groups = groups_of(str(instance.arguments["preset"]))
    return {
        "base_lr": {group: point["factor"] * found["base_lr"][group] for group in groups},
        "base_weight_decay": {group: found["base_weight_decay"][group] for group in groups},
        "schedule": "warmup_flat_warmdown",
    }


def _nanochat(instance: Instance, point: Point) -> dict[str, Any]:
    preset, num_steps = str(instance.arguments["preset"]), int(instance.arguments["num_steps"])
    given = BASELINES["nanochat"](num_steps, preset).env_kwargs
    rates = nanochat_rates(preset)["base_lr"]
    return given | {"base_lr": {group: point["factor"] * rate for group, rate in rates.items()}}


def _schedule_free(instance: Instance, point: Point) -> dict[str, Any]:
    preset, num_steps = str(instance.arguments["preset"]), int(instance.arguments["num_steps"])
    return schedule_free("adamw", point["lr"], 0.01, 16.0, num_steps, groups_of(preset))


def _power(instance: Instance, point: Point) -> dict[str, Any]:
    flat = max(1, int(instance.arguments["num_steps"]) // 10)
    return {"base_lr": point["lr"], "schedule": {"name": "power_decay", "flat_steps": flat}}


def _parameter_free(optimizer: str, instance: Instance, point: Point) -> dict[str, Any]:
    """Returns a rule that estimates its rate, at a multiplier of the estimate, under a cosine."""
    return {"optimizer": optimizer, "base_lr": point["multiplier"], "schedule": "cosine"}


def _adapted(instance: Instance, point: Point) -> dict[str, Any]:
    """Returns the rate at which an adaptive controller begins, without a base schedule."""
    return {"base_lr": point["lr"], "schedule": "none"}


def nanochat_base(instance: Instance, point: Point) -> dict[str, Any]:
    """Returns nanochat's rates, from which the controller of the update ratio begins."""
    rates = nanochat_rates(str(instance.arguments["preset"]))["base_lr"]
    return {"base_lr": rates, "schedule": "none"}


def _relative(point: Point) -> tuple[float, list[float]]:
    """Returns the largest of a schedule's rates, and every rate as a fraction of it."""
    largest = max(point.values())
    return largest, [rate / largest for rate in point.values()]


def _knots(instance: Instance, point: Point) -> dict[str, Any]:
    """Returns one rate for all tensors, on straight lines in the logarithm between its knots."""
    largest, fractions = _relative(point)
    return {"base_lr": largest, "schedule": {"name": "log_linear", "values": fractions}}


def _stairs(instance: Instance, point: Point) -> dict[str, Any]:
    """Returns one rate for all tensors, constant within equal parts of the run."""
    largest, fractions = _relative(point)
    interval = math.ceil(int(instance.arguments["num_steps"]) / len(fractions))
    stairs = {"name": "piecewise_constant", "values": fractions, "interval": interval}
    return {"base_lr": largest, "schedule": stairs}


def _flat(count: int) -> dict[str, float]:
    return {f"lr/{place}": FIRST_LR for place in range(count)}


def _rate(doc: str, schedule: Any) -> Baseline:
    return Baseline(doc, {"lr": FIRST_LR}, partial(_one_rate, schedule))


def _schedule(doc: str, search: str) -> Baseline:
    return Baseline(doc, _flat(NUM_KNOTS), _knots, search=search)


#: Name -> baseline.
FIELD: dict[str, Baseline] = {
    "constant": _rate("one constant rate for all tensors", "none"),
    "warmdown": _rate("one rate, 40 % linear warmdown (JEL, section 4.1)", "warmup_flat_warmdown"),
    "cosine": _rate("one rate, cosine to zero (Loshchilov & Hutter 2017)", "cosine"),
    "linear_decay": _rate("one rate, linear decay to zero", "linear_decay"),
    "wsd": _rate(
        "one rate, warmup, stable, 20 % linear decay (Hu et al. 2024)",
        {"name": "warmup_flat_warmdown", "warmdown_fraction": 0.2},
    ),
    "sqrt_cooldown": _rate(
        "one rate, stable, 1-sqrt cooldown (Haegele et al. 2024)", "sqrt_cooldown"
    ),
    "power": Baseline("one rate under a power law (Shen et al. 2024)", {"lr": FIRST_LR}, _power),
    "prodigy": Baseline(
        "Prodigy under a cosine (Mishchenko & Defazio 2023)",
        {"multiplier": 1.0},
        partial(_parameter_free, "prodigy"),
    ),
    "dadapt_adamw": Baseline(
        "D-Adaptation's AdamW under a cosine (Defazio & Mishchenko 2023)",
        {"multiplier": 1.0},
        partial(_parameter_free, "dadapt_adamw"),
    ),
    "update_ratio": Baseline(
        "a constant update-to-weight ratio per group, held by feedback",
        {"target": 0.01},
        nanochat_base,
        lambda instance, point: UpdateRatio(point["target"]),
    ),
    "hypergradient": Baseline(
        "hypergradient descent per group, from one rate (Baydin et al. 2018)",
        {"lr": FIRST_LR},
        _adapted,
        lambda instance, point: Hypergradient(),
    ),
    "adalrs": Baseline(
        "AdaLRS from one rate (Dong et al. 2025)",
        {"lr": FIRST_LR},
        _adapted,
        lambda instance, point: AdaLRS(),
    ),
    "schedule_free": Baseline(
        "schedule-free AdamW beside Muon at nanochat's rate (Defazio et al. 2024)",
        {"lr": 0.02},
        _schedule_free,
    ),
    "hand_tuned": Baseline(
        "per-group rates tuned on jel-nano times one factor",
        {"factor": 1.0},
        partial(_scaled, hand_tuned_rates),
    ),
    "nanochat": Baseline("nanochat's rates, schedules and Muon", {"factor": 1.0}, _nanochat),
    "random_schedule": _schedule("the best of 16 schedules of four log-uniform rates", "random"),
    "cma_es_schedule": _schedule("four rates of a schedule by CMA-ES (Hansen 2016)", "cma"),
    "tpe_schedule": _schedule(
        "four rates of a schedule by Optuna's TPE (Bergstra et al. 2011; Akiba et al. 2019)", "tpe"
    ),
    "asha": _schedule(
        "four rates of a schedule by random search with ASHA (Li et al. 2020) of Ray Tune", "asha"
    ),
    "pbt": Baseline(
        "the rates of the best member of a population by PBT (Jaderberg et al. 2017) of Ray Tune",
        _flat(NUM_PARTS),
        _stairs,
        search="pbt",
    ),
}
#: Baselines with one coordinate, whose search is that of `baselines.tuning.spend`.
ONE_COORDINATE = tuple(name for name, each in FIELD.items() if each.search == "coordinate")
