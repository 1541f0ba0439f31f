"""Parts of `results/attached/template.md`: a control law on GPT-2 in the Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from train_agents import figures
from train_agents.experiments import report as engine
from train_agents.experiments.report import Data
from train_agents.experiments.samples import Result, Scores, bpb_arms

#: Words of the starts and of the controllers.
STARTS = {"low": "a tenth of the tuned rate", "tuned": "the tuned rate", "high": "ten times it"}
KINDS = {"off": "no controller", "ratio_law": "ratio law", "adaptiverl": "AdaptiveRL"}
SIZES = {"small": "width 64", "4x": "width 128", "16x": "width 256"}


def arms(jobs: Mapping[str, Result]) -> dict[str, Scores]:
    """Returns the held-out bits per byte of every arm."""
    return dict(bpb_arms(jobs))


def reference_of(arm: str) -> str:
    """Returns the tuned schedule of an arm's size."""
    return f"{arm.partition('_')[0]}_tuned_off"


def without(arm: str) -> str:
    """Returns the arm of the same size and start without a controller."""
    size, start, _ = arm.split("_", 2)
    return f"{size}_{start}_off"


def summarize(data: Data) -> dict[str, dict[str, Any]]:
    """Returns each arm's intervals: bits per byte, and how far it lies below two others."""
    return {
        arm: {
            "bpb": scores["bpb"].estimate(),
            "below_tuned": data.below(arm, reference_of(arm)),
            "below_off": data.below(arm, without(arm)),
            "seeds": len(scores["bpb"].seeds),
            "diverged": data.divergences(arm),
        }
        for arm, scores in data.arms.items()
    }


def arm_table(data: Data, *groups: str) -> str:
    """Returns the arms of some sizes beside the tuned schedule and the run without a controller."""

    def below(reference: str, arm: str) -> str:
        return "" if arm == reference else engine.interval_text(data.below(arm, reference))

    columns: engine.Columns = [
        ("start", data.label),
        engine.bpb_column(data),
        ("below the same start without a controller", lambda arm: below(without(arm), arm)),
        ("below the tuned schedule", lambda arm: below(reference_of(arm), arm)),
        ("diverged", lambda arm: str(data.divergences(arm))),
    ]
    return engine.table(data.of_group(*(groups or SIZES)), columns)


def sweep_table(data: Data, size: str) -> str:
    """Returns the rates that were tried."""
    name = f"{size}_tuned_off"
    return engine.tried_table(data.jobs[name]) if name in data.jobs else ""


def values(data: Data) -> dict[str, Any]:
    """Returns the numbers of the page's sentences, as far as they were measured."""
    found: dict[str, Any] = {}
    for arm in data.arms:
        for key, reference in (("tuned", reference_of(arm)), ("off", without(arm))):
            gap = data.below(arm, reference)
            if gap and arm != reference:
                found[f"{arm}.{key}"] = 100 * gap[0]
    return found


def losses(size: str, data: Data) -> dict[str, figures.Curve]:
    """Returns the probe loss over the steps of the arms of a size."""
    found: dict[str, figures.Curve] = {}
    for arm in data.of_group(size):
        rows = data.rows(arm)
        curves = np.array([row["probe_curve"] for row in rows], dtype=np.float64)
        found[data.label(arm)] = (np.array(rows[0]["steps"]), curves)
    return found


_draw = partial(figures.curves, xlabel="training step", ylabel="probe loss [nats per byte]")
FIGURES: dict[str, engine.Figure] = {
    f"losses_{size}": (partial(losses, size), _draw) for size in SIZES
}
PARTS: dict[str, engine.Part] = {"arms": arm_table, "sweep": sweep_table}
