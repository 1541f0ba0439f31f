"""Boards of invented numbers, and rows that fit them."""

import numpy as np

from hpenv.benchmark.board import Board, Standing
from hpenv.benchmark.comparisons import PairedComparison
from hpenv.benchmark.instances import Instance, Suite
from hpenv.benchmark.methods import OFF
from hpenv.benchmark.statistics import Interval

METHODS = (
    "warmup-cosine-twice", "constant", OFF, "linear-decay", "cosine-tuned", "schedule-free",
    "hypergradient", "control-law", "sidecar", "jel-tuned", "ppo", "jel", "bandit",
    "population-based-training", "best-of-sixteen",
)  # fmt: skip
CHANNELS = ("lr", "weight_decay", "clip", "beta2", "lr/attention", "lr/mlp")


def board_and_rows(
    num_instances=4, num_methods=5, num_seeds=6, *, names=None, diverges=False, points=33
):
    """A board of invented numbers, and rows that fit it."""
    rng = np.random.default_rng(0)
    names = tuple(names or METHODS[:num_methods])
    instances = tuple(
        Instance(f"nano-{i:02d}", "TrainLoop-JEL-v0", {"num_steps": 400 + 100 * i, "batch": 8},
                 shift="batch" if i % 3 == 2 else "")
        for i in range(num_instances)
    )  # fmt: skip
    suite = Suite("pretraining-v1", "Nano models on a corpus of text.", num_seeds, 2, instances)
    base = 1.9 + 0.3 * rng.random(num_instances)
    reference = base - 0.05 - 0.1 * rng.random(num_instances)
    off_index = names.index(OFF) if OFF in names else -1

    standings, rows = [], []
    for m, name in enumerate(names):
        quality = 0.0 if m == off_index else 0.18 * (m - 1.5)
        raw = quality + 0.35 * rng.standard_normal((num_instances, 1))
        raw = raw + 0.12 * rng.standard_normal((num_instances, num_seeds))
        if m == off_index:
            raw = np.zeros_like(raw)
        values = base[:, None] - raw * (base - reference)[:, None]
        bad = np.zeros_like(values, dtype=bool)
        if diverges and m != off_index:
            bad = rng.random(values.shape) < 0.1
            bad[0] |= m == 1
        scores = np.where(bad, -1.0, np.clip(raw, -1.0, 1.5))
        values = np.where(bad, np.nan, values)
        rows += rows_of(rng, suite, name, m, values, points)

        mean = float(scores.mean())
        half = 0.0 if m == off_index else 0.08 + 0.1 * rng.random()
        versus = PairedComparison(
            Interval(mean, mean - half, mean + half), float(rng.random() ** 4), 0.5 + 0.4 * mean / 2
        )
        costs = {
            "meta_training": 0.0 if m < 7 else 10.0 ** rng.uniform(1, 3.4),
            "tuning": 0.0 if m < 3 else float(rng.integers(0, 40)),
            "overhead": None if m == 4 else 0.05 * rng.random() - 0.01,
        }
        if name == "ppo":
            costs["tuning"] = None
        standings.append(
            Standing(
                method=name,
                values=values,
                scores=scores,
                score=Interval(mean, mean - half, mean + half),
                optimality_gap=Interval(1 - mean, 0.9 - mean, 1.1 - mean),
                against_off=None if m == off_index else versus,
                against_above=None if m == 0 else versus,
                better_than_off=versus.p_value < 0.05,
                better_than_above=versus.p_value < 0.01,
                diverged=int(bad.sum()),
                costs=costs,
            )
        )
    rows.append(rows[0] | {"method": "half-done"})
    rows.append(rows[0] | {"suite": "another", "method": "stranger"})
    detectable = np.full(num_instances, np.nan)
    if num_seeds > 1:
        detectable = 0.1 + 0.2 * rng.random(num_instances)
    board = Board(
        suite=suite, num_seeds=num_seeds, instances=tuple(each.name for each in instances),
        standings=tuple(standings), base=base, reference=reference,
        detectable=detectable, unfinished=("half-done (1 of 200 rows)",),
        facts={
            "commit": ["671a96412ab34cd56ef78ab90cd12ef34ab56cd7"],
            "processor": ["Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"],
            "versions": [{"python": "3.11.2", "torch": "2.9.1", "hpenv": None}],
            "torch_threads": [1],
        },
    )  # fmt: skip
    return board, rows


def rows_of(rng, suite, name, m, values, points):
    """Rows of one method, as `hpenv.benchmark.rows` writes them."""
    rows = []
    for i, instance in enumerate(suite.instances):
        steps = np.linspace(0, instance.arguments["num_steps"], points).round().astype(int)
        for seed, final in zip(suite.seeds(instance), values[i], strict=True):
            end = final if np.isfinite(final) else 2.2
            noise = 0.01 * rng.standard_normal(points)
            loss = end + 3.0 * np.exp(-np.arange(points) / (3 + m / 4)) + noise
            at = np.linspace(0, 1, points - 1)
            panel = {
                channel: (2.0 ** (np.sin(3 * at + m + k) * (m % 4)) + 0.02 * noise[1:]).tolist()
                for k, channel in enumerate(CHANNELS[: 1 + m % len(CHANNELS)])
            }
            rows.append(
                {
                    "suite": suite.name, "instance": instance.name,
                    "instance_digest": instance.digest, "method": name, "controller_digest": "",
                    "seed": seed, "block_size": 2, "score": "bpb",
                    "final": float(final) if np.isfinite(final) else None,
                    "probe_loss": float(loss[-1]), "train_loss": float(loss[-1]),
                    "divergence_reason": None if np.isfinite(final) else "loss",
                    "steps": int(steps[-1]),
                    "curve": {"steps": steps.tolist(), "probe_loss": loss.tolist()},
                    "panel": panel, "costs": {}, "corpus": "0" * 64,
                }
            )  # fmt: skip
    return rows
