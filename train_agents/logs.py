"""Where a training program tells what it does: a folder of metrics, a bar, and the configuration before all else.

Metrics are written as JSON lines, always, and as TensorBoard scalars where TensorBoard is installed. A log that is
opened again at a step forgets all that came after it: a resumed run leaves the same log as one that never stopped.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

Advance = Callable[..., None]


class RunLog:
    """The log of one run: `progress.jsonl`, and TensorBoard events in `tensorboard/`.

    Args:
        folder: made if it is not there.
        resume_at: last step to keep; later lines are dropped, and so is a last line that was cut off while it was
            written. TensorBoard is told to hide later events.
        tensorboard: write TensorBoard events too; without the package, a line on stderr says that there are none.

    Raises:
        ValueError: a line other than the last is no JSON object with a `step`.

    Attributes:
        file: the JSON lines.
    """

    def __init__(self, folder: str | os.PathLike[str], resume_at: int = 0, tensorboard: bool = True) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "progress.jsonl"
        if self.file.exists():
            _truncate(self.file, resume_at)
        self._lines = self.file.open("a", encoding="utf-8")
        self._writer = _summary_writer(folder / "tensorboard", resume_at) if tensorboard else None

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """Writes the metrics of a step, and sees to it that they have left this process.

        Args:
            metrics: tag -> number, under stable-baselines3's tags or `inner/...`. A number that is not finite is null
                in the JSON line and NaN or infinite in TensorBoard.
            step: counts up; the key `step` of the line.

        Raises:
            ValueError: a metric is called `step`.
        """
        if "step" in metrics:
            raise ValueError(f"a metric is called 'step', the key of the line's own; got {sorted(metrics)}")
        values = {tag: float(value) for tag, value in metrics.items()}
        line = {"step": int(step)} | {tag: value if math.isfinite(value) else None for tag, value in values.items()}
        self._lines.write(json.dumps(line, allow_nan=False) + "\n")
        self._lines.flush()
        if self._writer is not None:
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, step)
            self._writer.flush()

    def progress(self, total: float, description: str, completed: float = 0) -> AbstractContextManager[Advance]:
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


def _truncate(file: Path, last_step: int) -> None:
    """Keeps the lines up to a step; whole or not at all, for what is dropped here was somebody's run."""
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    whole = lines[:-1]  # what stands after the last newline is a torn line, or nothing
    kept = []
    for number, line in enumerate(whole, start=1):
        try:
            step = json.loads(line)["step"]
        except (ValueError, TypeError, KeyError) as error:
            if number == len(whole):  # torn, and then followed by the newline of a repair
                break
            raise ValueError(f"{file}, line {number}: {line[:80]!r}; expected a JSON object with a step") from error
        if step <= last_step:
            kept.append(line + "\n")
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, file)


def _summary_writer(folder: Path, resume_at: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print(
            "tensorboard is not installed (pip install 'hpenv[agents]'): metrics go to JSON lines alone",
            file=sys.stderr,
        )
        return None
    again = folder.exists() and any(folder.iterdir())
    return SummaryWriter(str(folder), purge_step=resume_at + 1 if again else None)


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
    values = asdict(config) if is_dataclass(config) and not isinstance(config, type) else dict(config)
    text = json.dumps(values, indent=1, default=str)
    if not sys.stdout.isatty():
        print(text, flush=True)
        return
    from rich.console import Console

    Console().print_json(text)
