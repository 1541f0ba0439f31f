"""Compares two folders of job files of one experiment, paired by seed.

`python -m train_agents.experiments.compare OLD NEW` prints a row for each job in both folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tyro.conf import Positional

from hpenv.benchmark.command_line import refusals
from hpenv.benchmark.results import markdown_table, read_result
from hpenv.benchmark.statistics import paired_relative_interval


@dataclass(frozen=True)
class CompareConfig:
    """Two folders of job files, and the number to compare."""

    old: Positional[Path]  # folder of job files
    new: Positional[Path]  # folder of job files of the same names
    key: str = "bpb"  # number of each row


def comparison(old: Path, new: Path, key: str = "bpb") -> str:
    """Returns a Markdown table: mean and spread over seeds, and the paired relative difference.

    Raises:
        ValueError: if no job is in both folders, or a job was run on other seeds or another corpus.
    """
    names = sorted(
        {file.name for file in old.glob("*.json")} & {f.name for f in new.glob("*.json")}
    )
    if not names:
        raise ValueError(f"{old} and {new} must hold job files of the same names; got none")

    rows = []
    for name in names:
        before, after = _numbers(name, old, new, key)
        difference = paired_relative_interval(after, before)
        numbers = [f"{side.mean():.3f} ± {side.std(ddof=1):.3f}" for side in (before, after)]
        below = f"{difference.mean:+.2%} [{difference.low:+.2%}, {difference.high:+.2%}]"
        rows.append([name.removesuffix(".json"), *numbers, below, len(before)])
    return markdown_table(["job", f"old, {key}", f"new, {key}", "new below old", "seeds"], rows)


def _numbers(name: str, old: Path, new: Path, key: str) -> list[np.ndarray]:
    """Returns a number of each row of a job, in either folder.

    Raises:
        ValueError: the job was run on other seeds or another corpus, or a row lacks the number.
    """
    pair = [read_result(folder / name)["rows"] for folder in (old, new)]
    runs = [[(row["seed"], row["corpus"]) for row in side] for side in pair]
    if runs[0] != runs[1]:
        raise ValueError(
            f"{name} must be of the same seeds and corpus in both folders; got {runs[0]}, {runs[1]}"
        )

    if any(key not in row for row in (*pair[0], *pair[1])):
        raise ValueError(
            f"key must be a number of every row of {name}; "
            f"got {key!r}, rows have {sorted(pair[0][0])}"
        )
    return [np.array([row[key] for row in side]) for side in pair]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program."""
    import tyro

    config = tyro.cli(CompareConfig, args=arguments, description=__doc__)
    with refusals():
        table = comparison(config.old, config.new, config.key)
    print(table)


if __name__ == "__main__":
    main()
