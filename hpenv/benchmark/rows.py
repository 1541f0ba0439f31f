"""Rows: the results of a controller on the instances of a suite, as JSON lines.

A row is a pure function of its key: instance, controller, seed, and number of runs that train
together. Rows that train together are a block. A block has one file, which is written when the
block is done. Two folders of rows merge by copying.
"""

from __future__ import annotations

import gzip
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpenv.benchmark.evaluate import evaluate_controller
from hpenv.benchmark.facts import environment_facts
from hpenv.benchmark.files import write_text
from hpenv.benchmark.instances import Instance, Suite
from hpenv.benchmark.methods import Method
from hpenv.policies.controller import Controller
from hpenv.policies.store import POLICIES

#: Largest number of points of a curve in a row.
MOST_POINTS = 64
#: Significant digits of the numbers of a curve.
CURVE_DIGITS = 6
#: Arguments of an instance that a baseline may change. All others are the problem itself.
CHANGEABLE = ("base_lr", "base_weight_decay", "optimizer", "schedule", "weight_decay_schedule")
#: Facts of a row's computation.
FACTS = ("versions", "commit", "torch_threads", "processor", "cpu_capability")


@dataclass(frozen=True)
class Block:
    """Runs of one method on one instance that train together.

    Attributes:
        suite: name of the suite, which the seeds belong to.
        instance: their instance.
        method: their method.
        seeds: one per run.
        number: of the block among those of method and instance.
        folder: folder of the suite's rows.
    """

    suite: str
    instance: Instance
    method: Method
    seeds: tuple[int, ...]
    number: int
    folder: Path

    @property
    def file(self) -> Path:
        """Path of the block's rows."""
        name = f"{self.instance.name}.{self.number}.of-{len(self.seeds)}.jsonl"
        return self.folder / self.method.name / name

    @property
    def times_file(self) -> Path:
        """Path of the time that the block took, which differs between two runs of a block."""
        return self.folder / self.method.name / "times" / f"{self.file.stem}.json"

    @property
    def label(self) -> str:
        """Name in messages."""
        seeds = f"block {self.number} of {len(self.seeds)} seeds"
        return f"{self.method.name} on {self.instance.name} ({seeds})"


def blocks_of(
    suite: Suite, method: Method, folder: Path, seeds: int | None = None, split: str = "test"
) -> list[Block]:
    """Returns the blocks of a method on a suite, in the order of the suite's instances.

    Args:
        suite: its test instances are scored.
        method: the method.
        folder: folder of the suite's rows.
        seeds: number of seeds of every instance. None: the suite's.
        split: `test` or `train`.

    Raises:
        ValueError: there are more seeds than the suite has.
    """
    count = suite.num_seeds if seeds is None else seeds
    if not 1 <= count <= suite.num_seeds:
        raise ValueError(f"seeds must be from 1 to {suite.num_seeds}; got {count}")

    blocks = []
    for instance in suite.test if split == "test" else suite.train:
        chosen = suite.seeds(instance)[:count]
        for number, first in enumerate(range(0, count, suite.block_size)):
            part = tuple(chosen[first : first + suite.block_size])
            blocks.append(Block(suite.name, instance, method, part, number, folder))
    return blocks


def compute_block(block: Block) -> None:
    """Computes the rows of a block, and writes their file atomically.

    Validation is read once per row, at its end.
    """
    controller = block.method.load()
    changed = json.loads(json.dumps(changes_of(controller, block.instance), default=_as_json))
    times: list[float] = []
    results = evaluate_controller(
        controller,
        block.instance.env_id,
        arguments_for(controller, block.instance),
        block.seeds,
        max_rows=len(block.seeds),
        on_progress=lambda _: times.append(time.process_time()),
    )

    facts = {name: value for name, value in environment_facts().items() if name in FACTS}
    rows = [_row(block, result) | {"changed": changed} | facts for result in results]
    write_text(block.file, "".join(line_of(row) for row in rows))
    write_text(block.times_file, json.dumps(_time(times, results)) + "\n")


def _as_json(value: Any) -> Any:
    """Returns the fields of a schedule, or the text of something else."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else repr(value)


def _time(times: Sequence[float], results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the processor time from the first decision's end to the last's, and its steps."""
    steps = sum(result["steps"][-1] - result["steps"][1] for result in results)
    return {"seconds": times[-1] - times[0], "steps": steps}


def arguments_for(controller: Controller | None, instance: Instance) -> dict[str, Any]:
    """Returns the keyword arguments of an instance's environment under a controller.

    A baseline is a controller with a method `arguments(instance)`: the arguments of the instance
    that it changes, such as base rates and schedules. It is called once, before the runs begin. The
    interval of the instance is for controllers that ask for none, and a controller that asks for no
    registers has none.

    Raises:
        ValueError: the baseline changes another argument than CHANGEABLE.
    """
    found = dict(instance.arguments) | changes_of(controller, instance)
    if controller is None:
        return found | {"num_registers": 0}
    if controller.spec.interval is not None:
        found.pop("interval", None)
    if controller.spec.num_registers is None:
        found["num_registers"] = 0
    return found


def changes_of(controller: Controller | None, instance: Instance) -> dict[str, Any]:
    """Returns the arguments of an instance that a baseline changes. Empty for a controller.

    Raises:
        ValueError: it changes another argument than CHANGEABLE.
    """
    own = getattr(controller, "arguments", None)
    if own is None or type(controller) in POLICIES.values():  # `arguments` of a policy are its own
        return {}
    changed = dict(own(instance))
    if wrong := sorted(set(changed) - set(CHANGEABLE)):
        raise ValueError(
            f"arguments of a baseline must be of {list(CHANGEABLE)}; got {wrong}, "
            "which are part of the instance"
        )
    return changed


def _row(block: Block, result: Mapping[str, Any]) -> dict[str, Any]:
    score = score_key(result)
    return {
        "suite": block.suite,
        "instance": block.instance.name,
        "instance_digest": block.instance.digest,
        "method": block.method.name,
        "controller_digest": block.method.digest,
        "seed": result["seed"],
        "block_size": len(block.seeds),
        "score": score,
        "final": _number(result[score]),
        "probe_loss": _number(result["probe_loss"]),
        "train_loss": _number(result["train_loss"]),
        "divergence_reason": result["divergence_reason"],
        "steps": result["steps"][-1],
        "curve": {
            "steps": _thin(result["steps"], digits=None),
            "probe_loss": _thin(result.get("probe_curve", [])),
        },
        "panel": {name: _thin(values) for name, values in result["panel"].items()},
        "costs": dict(block.method.costs),
        "corpus": result["corpus"],
    }


def score_key(result: Mapping[str, Any]) -> str:
    """Returns the key of the held-out score of a plant's result."""
    return "bpb" if "bpb" in result else "score"


def _number(value: float | None) -> float | None:
    """Returns a finite number, or None."""
    return value if value is not None and math.isfinite(value) else None


def _thin(values: Sequence[float], digits: int | None = CURVE_DIGITS) -> list[float | None]:
    """Returns at most MOST_POINTS of a curve's values, evenly spaced, with both ends."""
    chosen = np.linspace(0, len(values) - 1, min(len(values), MOST_POINTS)).round().astype(int)
    picked = [values[i] for i in chosen]
    return picked if digits is None else [_rounded(value, digits) for value in picked]


def _rounded(value: float, digits: int) -> float | None:
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def line_of(row: Mapping[str, Any]) -> str:
    """Returns a row as one line of JSON."""
    return json.dumps(row, separators=(",", ":")) + "\n"


def key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns what a row is a function of."""
    names = ("suite", "instance_digest", "method", "controller_digest", "seed", "block_size")
    return tuple(row[name] for name in names)


def is_done(block: Block) -> bool:
    """Returns True if a block's rows are there.

    Raises:
        ValueError: they are of another instance, controller or list of seeds.
    """
    if not block.file.is_file():
        return False

    rows = read_file(block.file)
    expected: dict[str, Any] = {
        "suite": block.suite,
        "instance_digest": block.instance.digest,
        "controller_digest": block.method.digest,
    }
    if block.method.costs:
        expected["costs"] = dict(block.method.costs)
    for row in rows:
        found = {name: row[name] for name in expected}
        if found != expected:
            raise ValueError(
                f"{block.file} must hold rows of {expected}; got {found}; "
                "give the method another name, or take another folder"
            )
    seeds = [row["seed"] for row in rows]
    if seeds != list(block.seeds):
        raise ValueError(
            f"{block.file} must hold the seeds {list(block.seeds)}; got {seeds}; remove it"
        )
    return True


def read_file(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a file of lines, or of such a file that gzip has compressed (`.gz`).

    Raises:
        ValueError: a line is no row.
    """
    rows, contents = [], path.read_bytes()
    if path.suffix == ".gz":
        contents = gzip.decompress(contents)
    for number, line in enumerate(contents.decode("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            key_of(row)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} of {path} must be a row; got {line[:80]!r}") from error
        rows.append(row)
    return rows


def read_rows(places: Iterable[Path]) -> list[dict[str, Any]]:
    """Returns the rows of files and folders, each key once, sorted by key.

    Raises:
        ValueError: two rows of the same key have other numbers. The message has both.
    """
    found: dict[tuple[Any, ...], tuple[dict[str, Any], Path]] = {}
    for place in places:
        files = [place] if place.is_file() else sorted(place.rglob("*.jsonl"))
        for file in files:
            for row in read_file(file):
                other, there = found.setdefault(key_of(row), (row, file))
                if other["final"] != row["final"]:
                    raise ValueError(
                        f"a key must have one number; got {other['final']} in {there} and "
                        f"{row['final']} in {file}, for the key {key_of(row)}; remove one of them"
                    )
    return [row for _, (row, _) in sorted(found.items(), key=lambda item: str(item[0]))]
