"""Makes the references of a suite: `python -m baselines.references --suite smoke`.

A reference is the result of a coordinate search per instance: learning rate of every group of
tensors, weight decay of the matrices, and length of the final decay to zero. The search sees the
probe loss of two tuning seeds. Its best point has worse points on both sides in every coordinate:
a search that has spent its points before that gets ten more, and again, at most twice as many.
Then 20 further runs are made at that point, and their median validation score is the reference.

After an interruption, the same command continues: every point of a search is a line of its log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from baselines.schedules import groups_of, nanochat_rates
from baselines.trials import tuning_loss, tuning_seeds
from baselines.tuning import TOLERANCE, closed_search, spend
from hpenv.benchmark.command_line import check_counts, configuration, refusals
from hpenv.benchmark.evaluate import evaluate_controller
from hpenv.benchmark.executors import open_executor, run_all
from hpenv.benchmark.facts import environment_facts
from hpenv.benchmark.files import check_file, write_text
from hpenv.benchmark.instances import Instance, load_suite, seed_of
from hpenv.benchmark.progress import progress
from hpenv.benchmark.references import REFERENCES

#: First learning rate of the matrices under AdamW. Muon's is nanochat's.
ADAMW_MATRIX_LR = 0.005
#: First fraction of a run in which the rate decays linearly to zero.
WARMDOWN = 0.4


@dataclass(frozen=True)
class ReferencesConfig:
    """Configuration of the making of references."""

    suite: str = "smoke"  # name of a suite
    num_points: int = 40  # points of the search of an instance
    tuning_seeds: int = 2  # runs of every point
    num_reruns: int = 20  # runs whose median is the reference
    block_size: int = 10  # reruns that train together
    executor: str = "processes"  # see hpenv.benchmark.executors
    logs: Path = Path("runs/references")  # one log per instance
    out: Path = REFERENCES  # folder of the files of references

    def __post_init__(self) -> None:
        """Checks the counts."""
        check_counts(self, "num_points", "tuning_seeds", "num_reruns", "block_size")


def start_of(instance: Instance) -> dict[str, float]:
    """Returns the first point of an instance's search: coordinate -> value."""
    preset = str(instance.arguments["preset"])
    rates = nanochat_rates(preset)
    lr = {f"lr/{group}": rates["base_lr"][group] for group in groups_of(preset)}
    if "muon" not in str(instance.arguments["optimizer"]):
        lr["lr/matrix"] = ADAMW_MATRIX_LR
    return lr | {
        "weight_decay/matrix": rates["base_weight_decay"]["matrix"],
        "warmdown": WARMDOWN,
    }


def arguments_of(instance: Instance, point: Mapping[str, float]) -> dict[str, Any]:
    """Returns the arguments of an instance that a point changes, in JSON's types."""
    lr = {
        name.removeprefix("lr/"): value for name, value in point.items() if name.startswith("lr/")
    }
    return {
        "base_lr": lr,
        "base_weight_decay": dict.fromkeys(lr, 0.0) | {"matrix": point["weight_decay/matrix"]},
        "schedule": {
            "name": "warmup_flat_warmdown",
            "warmdown_fraction": min(1.0, point["warmdown"]),
        },
    }


def make_reference(instance: Instance, config: ReferencesConfig) -> dict[str, Any]:
    """Returns the reference of an instance, with the table of its search."""
    tuning = tuning_seeds(instance, config.tuning_seeds)

    def loss(point: Mapping[str, float]) -> float:
        return tuning_loss(instance, arguments_of(instance, point), tuning)

    log = config.logs / config.suite / f"{instance.name}.jsonl"
    description = {"instance": instance.digest, "seeds": tuning}
    best, table, around = closed_search(
        lambda count: spend(loss, start_of(instance), count, log, description, TOLERANCE),
        config.num_points,
    )
    changed = arguments_of(instance, best)
    reruns = [
        seed_of(f"{config.suite}/reference", instance.digest, i) for i in range(config.num_reruns)
    ]
    rows = evaluate_controller(
        None,
        instance.env_id,
        dict(instance.arguments) | changed,
        reruns,
        curve=False,
        max_rows=config.block_size,
    )
    values = [row["bpb"] for row in rows]
    facts = environment_facts(corpus=rows[0]["corpus"])
    return {
        "digest": instance.digest,
        "value": float(np.median(values)),
        "corpus": rows[0]["corpus"],
        "arguments": changed,
        "reruns": values,
        "tuning_seeds": tuning,
        "rerun_seeds": reruns,
        "neighbors": around,
        "points": [[*entry["point"].values(), entry["score"]] for entry in table],
        "coordinates": list(best),
        "facts": {name: facts[name] for name in ("commit", "processor", "versions")},
    }


def file_of(instance: Instance, config: ReferencesConfig) -> Path:
    """Returns the path of an instance's finished reference, before they are put together."""
    return config.logs / config.suite / f"{instance.name}.json"


def write_reference(instance: Instance, config: ReferencesConfig) -> None:
    """Makes the reference of an instance, and writes it."""
    found = make_reference(instance, config)
    write_text(file_of(instance, config), json.dumps(found) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the references that are missing, and puts all of them into one file."""
    config = configuration(ReferencesConfig, "baselines.references", __doc__, arguments)
    with refusals():
        suite = load_suite(config.suite)
        if strange := sorted(
            {each.env_id for each in suite.test if "preset" not in each.arguments}
        ):
            raise ValueError(
                f"suite must be of language-model pretraining, whose rates are searched; "
                f"{suite.name} has instances of {strange}"
            )
        out = config.out / f"{suite.name}.json"
        check_file("out", out)
        check_file("logs", file_of(suite.test[0], config))

    left = [each for each in suite.test if not file_of(each, config).is_file()]
    work = partial(write_reference, config=config)
    with (
        open_executor(config.executor) as executor,
        progress(len(suite.test), "references", len(suite.test) - len(left)) as advance,
    ):
        for instance, _ in run_all(work, left, executor, name=lambda each: each.name):
            print(f"{instance.name} is done", flush=True)
            advance(1, instance.name)

    lines = [
        f"  {json.dumps(each.name)}: {file_of(each, config).read_text(encoding='utf-8').strip()}"
        for each in suite.test
    ]
    head = {"suite": suite.name, "num_points": config.num_points, "search": __doc__}
    text = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items())
    write_text(out, "{\n" + text + ',\n "instances": {\n' + ",\n".join(lines) + "\n }\n}\n")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
