"""Compares two folders of job files of one experiment, paired by seed.

`python -m train_agents.experiments.compare OLD NEW` prints a row for each job that both folders
hold.
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
    """What is compared."""

    old: Positional[Path]  # folder of job files
    new: Positional[Path]  # folder of job files of the same names
    key: str = "bpb"  # number of each row


def comparison(old: Path, new: Path, key: str = "bpb") -> str:
    """Returns a Markdown table: mean and spread over seeds in both folders, and the paired relative
    difference.

    Raises:
        ValueError: if no job is in both folders, or a job was run on other seeds or another corpus.
    """
    names = sorted(
        {file.name for file in old.glob("*.json")} & {file.name for file in new.glob("*.json")}
    )
    if not names:
        raise ValueError(f"{old} and {new} must hold job files of the same names; got none")

    rows = []
    for name in names:
        pair = [read_result(folder / name)["rows"] for folder in (old, new)]
        runs = [[(row["seed"], row["corpus"]) for row in side] for side in pair]
        if runs[0] != runs[1]:
            raise ValueError(
                f"{name} must be of the same seeds and corpus in both folders; got {runs[0]}, {runs[1]}"
            )
        if any(key not in row for side in pair for row in side):
            raise ValueError(
                f"key must be a number of every row of {name}; got {key!r}, rows have {sorted(pair[0][0])}"
            )
        before, after = (np.array([row[key] for row in side]) for side in pair)
        difference = paired_relative_interval(after, before)
        rows.append(
            [
                name.removesuffix(".json"),
                f"{before.mean():.3f} ± {before.std(ddof=1):.3f}",
                f"{after.mean():.3f} ± {after.std(ddof=1):.3f}",
                f"{difference.mean:+.2%} [{difference.low:+.2%}, {difference.high:+.2%}]",
                len(before),
            ]
        )
    return markdown_table(["job", f"old, {key}", f"new, {key}", "new below old", "seeds"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program."""
    import tyro

    config = tyro.cli(CompareConfig, args=arguments, description=__doc__)
    with refusals():
        table = comparison(config.old, config.new, config.key)
    print(table)


if __name__ == "__main__":
    main()
