"""Where a training program tells what it does: a folder of metrics, a bar, and the configuration
before all else.

Metrics are written as JSON lines, always, and as TensorBoard scalars where TensorBoard is
installed. A log that is opened again at a step forgets all that came after it: a resumed run leaves
the same log as one that never stopped.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from train_agents.outputs import write_text

Advance = Callable[..., None]
#: Metrics that TensorBoard's table of hyperparameters shows.
HPARAM_METRICS = ("rollout/ep_rew_mean", "eval/held_out")


class RunLog:
    """The log of one run: `progress.jsonl`, and TensorBoard events in `tensorboard/`.

    Steps are timesteps of the environment, decisions summed over the runs, as stable-baselines3
    counts them.

    Args:
        folder: made if it is not there.
        resume_at: last step to keep; later lines are dropped, and so is a last line that was cut
            off while it was written. TensorBoard is told to hide later events.
        tensorboard: write TensorBoard events too; without the package, a line on stderr says that
            there are none.
        hyperparameters: of the run, nested as they may be; TensorBoard's table of them is written
            when a log begins.

    Raises:
        ValueError: a line other than the last is no JSON object with a `step`.

    Attributes:
        file: the JSON lines.
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
        """Returns stable-baselines3's `time/...` metrics; `fps` are timesteps per second since this
        log was opened.

        Args:
            timesteps: of the run so far.
            iterations: rollouts that the agent has learned from so far.
        """
        seconds = max(time.monotonic() - self._begun, 1e-9)
        return {
            "time/total_timesteps": timesteps,
            "time/iterations": iterations,
            "time/time_elapsed": int(seconds),
            "time/fps": int((timesteps - self._first) / seconds),
        }

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """Writes the metrics of a step, and sees to it that they have left this process.

        Args:
            metrics: tag -> number, under stable-baselines3's tags or `inner/...`. A number that is
                not finite is null in the JSON line and NaN or infinite in TensorBoard.
            step: counts up; the key `step` of the line.

        Raises:
            ValueError: a metric is called `step`.
        """
        if "step" in metrics:
            raise ValueError(
                f"a metric is called 'step', the key of the line's own; got {sorted(metrics)}"
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
        """A bar: see `progress`."""
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
    """Keeps the JSON lines whose `key` is at most `last`; a last line that was cut off while it was
    written goes, too.

    Whole or not at all, for what is dropped here was somebody's run. A file that is not there stays
    so.

    Raises:
        ValueError: a line other than the last is no JSON object with a number under the key.
    """
    if not file.exists():
        return
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    whole = lines[:-1]  # what stands after the last newline is a torn line, or nothing
    kept = []
    for number, line in enumerate(whole, start=1):
        try:
            if json.loads(line)[key] <= last:
                kept.append(line + "\n")
        except (ValueError, TypeError, KeyError) as error:
            if number == len(whole):  # torn, and then followed by the newline of a repair
                break
            raise ValueError(
                f"{file}, line {number}, must be a JSON object with a number {key!r}; got {line[:80]!r}: give another "
                "--out, or delete the line"
            ) from error
    write_text(file, "".join(kept))


def _summary_writer(folder: Path, resume_at: int, hyperparameters: Mapping[str, Any] | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams
    except ImportError:
        print(
            "tensorboard is not installed (pip install 'hpenv[agents]'): metrics go to JSON lines alone",
            file=sys.stderr,
        )
        return None
    again = folder.exists() and any(folder.iterdir())
    writer: Any = SummaryWriter(str(folder), purge_step=resume_at + 1 if again else None)
    if hyperparameters is not None and not again:
        for summary in hparams(flat(hyperparameters), dict.fromkeys(HPARAM_METRICS, 0.0)):
            writer.file_writer.add_summary(summary)
    return writer


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Returns nested values under keys with slashes, `jel/gamma`; what is neither number nor text is its JSON."""
    found: dict[str, bool | int | float | str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}/")
        else:
            plain = isinstance(value, bool | int | float | str)
            found[f"{prefix}{key}"] = value if plain else json.dumps(value, default=str)
    return found


@contextmanager
def progress(total: float, description: str, completed: float = 0) -> Iterator[Advance]:
    """A progress bar on stderr; without a word where that is not a terminal.

    Args:
        total: what there is to do, in any unit.
        description: what it is.
        completed: what of it is done already.

    Yields:
        `advance(amount=1, text="")`: moves the bar, and shows a text behind it.
    """
    if not sys.stderr.isatty():
        yield lambda amount=1.0, text="": None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(escape(description), total=total, completed=completed, text="")  # type: ignore[arg-type]

        def advance(amount: float = 1.0, text: str = "") -> None:
            bar.update(task, advance=amount, text=escape(text))

        yield advance


def describe(config: Any) -> None:
    """Prints the whole configuration, a dataclass or a mapping: colored JSON on a terminal, plain JSON elsewhere."""
    values = (
        asdict(config) if is_dataclass(config) and not isinstance(config, type) else dict(config)
    )
    text = json.dumps(values, indent=1, default=str)
    if not sys.stdout.isatty():
        print(text, flush=True)
        return
    from rich.console import Console

    Console().print_json(text)
