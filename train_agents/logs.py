"""Output of a training program: a folder of metrics, a progress bar, and the configuration.

Metrics are always written as JSON lines, and as TensorBoard scalars if TensorBoard is installed. A
log that is opened again at a step drops all later lines. A resumed run therefore leaves the same
log as a run without interruption.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from hpenv.benchmark.files import write_text
from hpenv.benchmark.progress import Advance, progress

#: Metrics in TensorBoard's table of hyperparameters.
HPARAM_METRICS = ("rollout/ep_rew_mean", "eval/held_out")


class RunLog:
    """The log of one run: `progress.jsonl`, and TensorBoard events in `tensorboard/`.

    Its steps are timesteps of the environment as in stable-baselines3: decisions summed over runs.

    Args:
        folder: folder of the log. It is made if it is missing.
        resume_at: last step to keep. Later lines are dropped, and so is a torn last line.
            TensorBoard hides later events.
        tensorboard: also write TensorBoard events. Without the package, a line on stderr says so.
        hyperparameters: hyperparameters of the run, which may be nested. A new log gets
            TensorBoard's table of them.

    Raises:
        ValueError: a line other than the last is no JSON object with a `step`.

    Attributes:
        file: the file of JSON lines.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        resume_at: int = 0,
        tensorboard: bool = True,
        hyperparameters: Mapping[str, Any] | None = None,
    ) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "progress.jsonl"
        keep_lines(self.file, "step", resume_at)
        self._lines = self.file.open("a", encoding="utf-8")
        self._writer = (
            _summary_writer(folder / "tensorboard", resume_at, hyperparameters)
            if tensorboard
            else None
        )
        self._begun, self._first = time.monotonic(), resume_at

    def clocks(self, timesteps: int, iterations: int) -> dict[str, float]:
        """Returns stable-baselines3's `time/...` metrics. `fps` counts since the log was opened.

        Args:
            timesteps: timesteps of the run so far.
            iterations: number of rollouts in the agent's updates so far.
        """
        seconds = max(time.monotonic() - self._begun, 1e-9)
        return {
            "time/total_timesteps": timesteps,
            "time/iterations": iterations,
            "time/time_elapsed": int(seconds),
            "time/fps": int((timesteps - self._first) / seconds),
        }

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """Writes the metrics of a step, and flushes the files.

        Args:
            metrics: tag -> number, under stable-baselines3's tags or `inner/...`. A number that is
                not finite is null in the JSON line, and NaN or infinite in TensorBoard.
            step: the increasing step, under the key `step` of the line.

        Raises:
            ValueError: a metric has the tag `step`.
        """
        if "step" in metrics:
            raise ValueError(
                f"metrics must not have the tag 'step', a key of the line; got {sorted(metrics)}"
            )

        values = {tag: float(value) for tag, value in metrics.items()}
        line = {"step": int(step)} | {
            tag: value if math.isfinite(value) else None for tag, value in values.items()
        }
        self._lines.write(json.dumps(line, allow_nan=False) + "\n")
        self._lines.flush()
        if self._writer is not None:
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, step)
            self._writer.flush()

    def progress(
        self, total: float, description: str, completed: float = 0
    ) -> AbstractContextManager[Advance]:
        """Shows a progress bar. See the function `progress`."""
        return progress(total, description, completed)

    def close(self) -> None:
        """Closes the files."""
        self._lines.close()
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def keep_lines(file: Path, key: str, last: int) -> None:
    """Drops the JSON lines whose `key` is above `last`, and a torn last line, atomically.

    A missing file stays missing.

    Raises:
        ValueError: a line other than the last is no JSON object with a number under the key.
    """
    if not file.exists():
        return
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    whole = lines[:-1]  # the text after the last newline is a torn line, or empty
    kept = []

    for number, line in enumerate(whole, start=1):
        try:
            if json.loads(line)[key] <= last:
                kept.append(line + "\n")
        except (ValueError, TypeError, KeyError) as error:
            if number == len(whole):  # a torn line, to which a repair added a newline
                break
            raise ValueError(
                f"{file}, line {number}, must be a JSON object with a number {key!r}; "
                f"got {line[:80]!r}; give another --out, or delete the line"
            ) from error

    write_text(file, "".join(kept))


def append_line(file: Path, line: Mapping[str, Any]) -> None:
    """Appends a line of JSON to a file."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")


def read_lines(file: Path, key: str = "number") -> list[dict[str, Any]]:
    """Returns the JSON lines of a file, and drops a torn last one. Empty without a file.

    Raises:
        ValueError: see `keep_lines`.
    """
    keep_lines(file, key, sys.maxsize)
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _summary_writer(folder: Path, resume_at: int, hyperparameters: Mapping[str, Any] | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams
    except ImportError:
        print(
            "tensorboard is not installed (pip install 'hpenv[agents]'); "
            "metrics are only written as JSON lines",
            file=sys.stderr,
        )
        return None

    again = folder.exists() and any(folder.iterdir())
    writer: Any = SummaryWriter(str(folder), purge_step=resume_at + 1 if again else None)
    if hyperparameters is not None and not again:
        for summary in hparams(flatten(hyperparameters), dict.fromkeys(HPARAM_METRICS, 0.0)):
            writer.file_writer.add_summary(summary)

    return writer


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Returns nested values under keys such as `jel/gamma`. Other types become JSON texts."""
    found: dict[str, bool | int | float | str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{key}/")
        else:
            plain = isinstance(value, bool | int | float | str)
            found[f"{prefix}{key}"] = value if plain else json.dumps(value, default=str)
    return found
