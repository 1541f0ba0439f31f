"""Short-sightedness of the estimated effects of cells, measured by counterfactuals.

Command: `python -m train_agents.experiments.measures.horizons --out FILE.json`.

From some states of a run without a controller, copies of the run hold one cell at plus and at minus
a move for some steps, and are neutral from there on. All copies see the same batches. Half the
difference of a pair's probe losses, per unit of position, is the true effect of the cell after so
many steps. Two estimates are compared with it:

- `early`: with the gradient at the end of the hold. A learner has it at once.
- `late`: with the gradient at the step of the comparison, of the change that the hold made. A
  learner has it with that delay. It has no part for channels of the forward pass, whose dials have
  gone back by then.

The true effect of a small move drowns in roundings after some hundred steps: `floor` is the root
mean square of the same difference between two copies that differ by a rounding alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpenv.arrays import FloatArray
from hpenv.benchmark.command_line import check_counts, configuration, refusals
from hpenv.benchmark.results import Rows, write_result
from hpenv.lm.data import Corpus
from hpenv.plant.protocol import Snapshot
from hpenv.pretraining.config import PretrainingConfig
from hpenv.pretraining.plant import PretrainingPlant
from train_agents.experiments.measures.weights import pearson

#: Relative change of the weights that makes the floor: a rounding of float32.
ROUNDING = 1e-7


@dataclass(frozen=True)
class HorizonConfig:
    """Run and sizes of the measurement. The run is the default of the Sidecar's experiments."""

    out: Path = Path("runs/horizons.json")  # file of the result
    preset: str = "cell11"
    data: str = "stdlib"
    optimizer: str = "adamw"
    base_lr: float = 1e-3
    batch_tokens: int = 128  # of a step [tokens]
    sequence_length: int = 64  # [tokens]
    num_probe_batches: int = 16  # that losses and gradients are measured on
    channels: tuple[str, ...] = ("lr", "weight_decay", "feed_forward_gain", "attention_temperature")
    layers: tuple[int, ...] = (0, 5, 10)  # whose cells are moved
    states: tuple[int, ...] = (100, 1000, 2500)  # where copies begin [steps]
    lags: tuple[int, ...] = (1, 16, 64, 256)  # after which losses are compared [steps]
    hold: int = 16  # steps that a cell is moved for, at most the lag [steps]
    move: float = 0.3  # size of a move [position]
    num_repeats: int = 4  # per state, `hold` steps apart
    seed: int = 2000
    threads: int = 1  # torch threads

    def __post_init__(self) -> None:
        """Checks the numbers."""
        check_counts(self, "num_probe_batches", "hold", "num_repeats", "threads")
        if not 0.0 < self.move <= 1.0:
            raise ValueError(f"move must be in (0, 1]; got {self.move}")
        if list(self.states) != sorted(self.states) or list(self.lags) != sorted(self.lags):
            raise ValueError(f"states and lags must ascend; got {self.states} and {self.lags}")


def agreement(estimates: FloatArray, truths: FloatArray) -> dict[str, float | None]:
    """Returns how well estimates tell true effects, of (n,) pairs.

    Returns:
        `sign`, the fraction of equal signs; `correlation`, Pearson's, None if one side does not
        vary; `ratio`, root mean square of the truths over that of the estimates, None without
        estimates; and `slope` of the truths on the estimates through the origin.
    """
    square = float(np.square(estimates).sum())
    if square == 0.0:
        return {"sign": None, "correlation": None, "ratio": None, "slope": None}
    return {
        "sign": float(np.mean(np.sign(estimates) == np.sign(truths))),
        "correlation": pearson(estimates, truths),
        "ratio": math.sqrt(float(np.square(truths).sum()) / square),
        "slope": float(estimates @ truths) / square,
    }


def measure_horizons(config: HorizonConfig, corpus: Corpus | None = None) -> Rows:
    """Measures true and estimated effects. See HorizonConfig.

    Returns:
        A row per channel, lag and estimate, over all states: `steps` (of the first and the last
        pair), `channel`, `lag`, `estimate`, the numbers of `agreement`, `truth` (root mean square
        of the true effects), `mean_truth` and `mean_estimate` [nats per token per unit of
        position], `floor`, and the number of `pairs`. And the raw pairs.
    """
    fields = ("preset", "data", "optimizer", "base_lr", "batch_tokens", "sequence_length")
    given = {name: getattr(config, name) for name in (*fields, "num_probe_batches")}
    channels = tuple((name, "layer") for name in config.channels)
    plant = PretrainingPlant(PretrainingConfig(**given), 1, channels, corpus)
    names = plant.panel.names
    columns = [k for k, name in enumerate(names) if int(name.split(".")[1]) in config.layers]
    plant.reset([config.seed])

    pairs: list[dict[str, Any]] = []
    for state in config.states:
        _advance(plant, max(0, state - int(plant.steps[0])))
        for _ in range(config.num_repeats):
            pairs += _pairs(plant, columns, config)
            _advance(plant, config.hold)
    return _summary(pairs), {"pairs": pairs}


def _advance(plant: PretrainingPlant, num_steps: int) -> FloatArray:
    """Trains all rows without measuring the probe."""
    plant.set_measured_groups(())
    return plant.advance(np.full(plant.num_rows, num_steps))["train_loss"]


def _copy(plant: PretrainingPlant, num_rows: int) -> PretrainingPlant:
    whole, copy = plant.snapshot(), plant.spawn(num_rows)
    tensors = {
        name: tensor.repeat_interleave(num_rows, 0) for name, tensor in whole.tensors.items()
    }
    copy.restore(Snapshot(tensors, whole.metadata))
    return copy


def _probe(plant: PretrainingPlant) -> FloatArray:
    plant.set_measured_groups({"probe"})
    return plant.advance(np.zeros(plant.num_rows, dtype=np.int64))["probe_loss"]


def _effects(plant: PretrainingPlant, num_steps: int) -> FloatArray:
    """Returns the effects (A,) of the next steps of a run, which advances."""
    plant.set_measured_groups({"cell_effect"})
    return plant.advance(np.array([num_steps]))["cell_effect"][0]


def _pairs(
    plant: PretrainingPlant, columns: Sequence[int], config: HorizonConfig
) -> list[dict[str, Any]]:
    """Returns a true and two estimated effects per cell and lag, from where the run stands."""
    plant.set_measured_groups(())
    found = []
    for hold in sorted({min(config.hold, lag) for lag in config.lags}):
        lags = [lag for lag in config.lags if min(config.hold, lag) == hold]
        truths = _truths(plant, columns, hold, lags, config.move)
        early = _effects(_copy(plant, 1), hold)
        for lag in lags:
            late = early if lag == hold else _late(plant, hold, lag)
            for place, column in enumerate(columns):
                own = {"step": int(plant.steps[0]), "cell": plant.panel.names[column], "lag": lag}
                own |= {"truth": float(truths[lag][place]), "floor": float(truths[lag][-1])}
                own |= {"early": float(early[column]), "late": float(late[column])}
                found.append(own)
    return found


def _truths(
    plant: PretrainingPlant, columns: Sequence[int], hold: int, lags: Sequence[int], move: float
) -> dict[int, FloatArray]:
    """Returns true effects per lag, (cells + 1,). The last is of a rounding of the weights."""
    copies = _copy(plant, 2 * len(columns) + 2)
    for weight in copies.weights.values():
        weight[-1] *= 1.0 + ROUNDING
    for pair, column in enumerate(columns):
        copies.panel.positions[2 * pair, column] = move
        copies.panel.positions[2 * pair + 1, column] = -move
    _advance(copies, hold)

    found, done = {}, hold
    for lag in lags:
        if lag > hold:
            copies.panel.positions[:] = 0.0
        _advance(copies, lag - done)
        losses, done = _probe(copies), lag
        found[lag] = (losses[1::2] - losses[0::2]) / (2.0 * move)
    return found


def _late(plant: PretrainingPlant, hold: int, lag: int) -> FloatArray:
    """Returns the effects of the first `hold` steps with the gradient after `lag` steps, (A,).

    They are those of all steps less those of the others. Dials drop out of the difference.
    """
    whole, rest = _copy(plant, 1), _copy(plant, 1)
    _advance(rest, hold)
    return _effects(whole, lag) - _effects(rest, lag - hold)


def _summary(pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    rows, states = [], sorted({pair["step"] for pair in pairs})
    for lag in sorted({pair["lag"] for pair in pairs}):
        channels = [pair["cell"].split("/")[0] for pair in pairs]
        for channel in dict.fromkeys(channels):
            own = [p for p, name in zip(pairs, channels, strict=True) if name == channel]
            own = [pair for pair in own if pair["lag"] == lag]
            truths = np.array([pair["truth"] for pair in own])
            for estimate in ("early", "late"):
                estimates = np.array([pair[estimate] for pair in own])
                row: dict[str, Any] = {"channel": channel, "lag": lag, "estimate": estimate}
                row |= agreement(estimates, truths)
                row |= {"truth": float(np.sqrt(np.mean(truths**2)))}
                row |= {"mean_truth": float(truths.mean()), "mean_estimate": estimates.mean()}
                row["mean_estimate"] = float(row["mean_estimate"])
                row["floor"] = float(np.sqrt(np.mean([pair["floor"] ** 2 for pair in own])))
                rows.append(row | {"pairs": len(own), "steps": [states[0], states[-1]]})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints a table and writes the result."""
    program = "train_agents.experiments.measures.horizons"
    config = configuration(HorizonConfig, program, __doc__, arguments)
    torch.set_num_threads(config.threads)
    with refusals():
        rows, extra = measure_horizons(config)
    write_result(config.out, "horizons", asdict(config), rows, extra)
    for row in rows:
        shown = {name: row[name] for name in ("sign", "correlation", "slope", "truth", "floor")}
        numbers = " ".join(f"{k} {v:.3g}" for k, v in shown.items() if v is not None)
        print(f"{row['channel']} after {row['lag']} steps, {row['estimate']}: {numbers}")
    print(f"written: {config.out}")


if __name__ == "__main__":
    main()
