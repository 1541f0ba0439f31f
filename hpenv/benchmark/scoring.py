"""The score of a controller on a suite, in one call: rows, board, rank and page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpenv.benchmark.aggregates import FEWEST_SEEDS
from hpenv.benchmark.board import Board, Standing, make_board
from hpenv.benchmark.executors import open_executor, run_all
from hpenv.benchmark.files import check_folder, write_text
from hpenv.benchmark.instances import Suite, load_suite
from hpenv.benchmark.methods import OFF, REFERENCE, Method, method_of
from hpenv.benchmark.page import html_board, markdown_board
from hpenv.benchmark.progress import progress
from hpenv.benchmark.references import References, load_references
from hpenv.benchmark.rows import (
    Block,
    blocks_of,
    compute_block,
    is_done,
    read_rows,
)
from hpenv.policies.controller import Controller

#: Rows of the field that ship with the package, one file per suite.
FIELD = Path(__file__).with_name("field")
Row = dict[str, Any]
#: Default folder of rows and boards.
FOLDER = Path("runs/benchmark")


@dataclass(frozen=True)
class Result:
    """The score of one controller on a suite.

    Attributes:
        method: its name on the board.
        board: the board, with the field's methods.
        page: the board as a page for a browser.
    """

    method: str
    board: Board
    page: Path

    @property
    def standing(self) -> Standing:
        """The controller's line of the board."""
        return next(each for each in self.board.standings if each.method == self.method)

    def __str__(self) -> str:
        """Returns score, interval, rank, comparison with `off`, and where the page is."""
        standing, board = self.standing, self.board
        score = standing.score
        lines = [
            f"{self.method} on {board.suite.name}: score {score.mean:.3f} "
            f"[{score.low:.3f}, {score.high:.3f}] (0 is off, 1 is the tuned reference)"
        ]
        if board.num_seeds < FEWEST_SEEDS:
            lines.append(f"no rank: {board.num_seeds} seeds, and a rank needs {FEWEST_SEEDS}")
        else:
            lines.append(f"rank {board.rank(self.method)} of {len(board.standings)}")
        if standing.against_off is not None:
            verdict = "better than off" if standing.better_than_off else "not better than off"
            lines.append(f"{verdict} (p = {standing.against_off.p_value:.2g} before correction)")
        if standing.diverged:
            lines.append(f"{standing.diverged} of {standing.values.size} runs diverged")
        lines.append(f"page: {self.page}, table: {self.page.with_suffix('.md')}")
        return "\n".join(lines)


def score(
    controller: Controller | str | None,
    suite: str | Suite = "jel-nano",
    *,
    name: str = "",
    seeds: int | None = None,
    executor: str = "processes",
    folder: str | Path = FOLDER,
    costs: Mapping[str, float] | None = None,
) -> Result:
    """Scores a controller on the test instances of a suite.

    Rows that are there already are not computed again, so that a call that was interrupted goes on.
    Without a controller, and on a text that the references were not made on, the methods `off` and
    `reference` are computed as well.

    Args:
        controller: a controller, or the name of one for `load_controller`. An object is computed in
            this process, and anew at every call.
        suite: a suite, the name of one, or the path of a JSON file.
        name: name on the board. Empty: from the controller's.
        seeds: number of seeds of every instance. None: the suite's. Fewer than five have no rank.
        executor: where rows are computed, see `run_all`. It changes no number.
        folder: folder of rows and boards.
        costs: `meta_training` and `tuning` of the controller [runs of an instance, by tokens].

    Raises:
        ValueError: for an argument that does not fit, or rows of another controller under the name.

    Example:
        >>> print(score("my_controller.py:Braking", suite="jel-nano"))  # doctest: +SKIP
    """
    chosen = load_suite(suite) if isinstance(suite, str) else suite
    check_scorable(chosen, seeds)
    place = Path(folder) / chosen.name
    check_folder("folder", place)
    method = method_of(controller, name, costs)
    methods = [method] if method.name == OFF else [Method(OFF, None), method]
    if not isinstance(controller, str) and controller is not None:
        _remove_rows(place / "rows" / method.name)
        executor = "inline"

    run_methods(chosen, methods, place, seeds=seeds, executor=executor)
    if needs_reference(chosen, place):
        run_methods(chosen, [reference_method(chosen)], place, seeds=seeds, executor=executor)
    board, page = write_board(chosen, place, seeds=seeds)
    return Result(method.name, board, page)


def check_scorable(suite: Suite, seeds: int | None = None) -> None:
    """Checks that a suite has references, and enough runs for an interval.

    Raises:
        ValueError: it has not. The message says which.
    """
    references = load_references(suite.name)
    missing = [each.name for each in suite.test if each.digest not in references]
    if missing:
        raise ValueError(
            f"every test instance of {suite.name} must have a reference; {missing} have none; "
            "take another suite, or make them for one of pretraining with: "
            "python -m baselines.references"
        )
    if len(suite.test) * (suite.num_seeds if seeds is None else seeds) < 2:
        raise ValueError(f"a score of {suite.name} needs two runs at least; give more seeds")


def _remove_rows(folder: Path) -> None:
    """Removes the rows of a controller that was given as an object, whose code is not known.

    Raises:
        ValueError: the rows are of a named controller.
    """
    rows = read_rows([folder]) if folder.is_dir() else []
    if any(row["controller_digest"] for row in rows):
        raise ValueError(
            f"{folder} must hold rows of an object; it holds those of a named controller; "
            "give another name"
        )
    if folder.is_dir():
        shutil.rmtree(folder)


def reference_method(suite: Suite) -> Method:
    """Returns the method that runs the references' rates."""
    return Method(REFERENCE, References(suite.name))


def run_methods(
    suite: Suite,
    methods: Sequence[Method],
    place: Path,
    *,
    seeds: int | None = None,
    executor: str = "processes",
) -> None:
    """Computes the rows of methods that are not there yet. A progress bar shows the rows.

    Raises:
        ValueError: see `is_done` and `run_all`.
        WorkError: naming the blocks that failed.
    """
    blocks = all_blocks(suite, methods, place, seeds)
    left = [block for block in blocks if not is_done(block)]
    total = sum(len(block.seeds) for block in blocks)
    done = total - sum(len(block.seeds) for block in left)

    with (
        open_executor(executor) as place_of_work,
        progress(total, f"{suite.name} rows", done) as advance,
    ):
        for block, _ in run_all(compute_block, left, place_of_work, name=lambda block: block.label):
            advance(len(block.seeds), block.label)


def all_blocks(
    suite: Suite, methods: Sequence[Method], place: Path, seeds: int | None = None
) -> list[Block]:
    """Returns the blocks of methods on the test instances of a suite.

    Raises:
        ValueError: two methods have one name, or there are more seeds than the suite has.
    """
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise ValueError(f"methods must have different names; got {names}; give names")

    blocks: list[Block] = []
    for method in methods:
        blocks += blocks_of(suite, method, place / "rows", seeds)
    return blocks


def needs_reference(suite: Suite, place: Path) -> bool:
    """Returns True if rows were computed on a text that the frozen references do not know."""
    references = load_references(suite.name)
    for row in read_rows([place / "rows"]):
        frozen = references.get(row["instance_digest"])
        if frozen is not None and frozen.corpus != row["corpus"]:
            return True
    return False


def write_board(
    suite: Suite, place: Path, *, seeds: int | None = None, others: Sequence[Path] = ()
) -> tuple[Board, Path]:
    """Writes the board of a folder's rows, of other places, and of the field.

    Returns:
        The board, and the path of its page. `board.md` beside it holds the table.
    """
    rows = read_rows([place / "rows", *others])
    rows += _rows_of_others(rows, read_rows(FIELD.glob(f"{suite.name}.jsonl*")))

    board = make_board(
        suite,
        rows,
        load_references(suite.name),
        num_seeds=seeds,
        overheads=overheads(place / "rows"),
    )
    page = place / "board.html"
    write_text(page, html_board(board, rows))
    write_text(place / "board.md", markdown_board(board) + "\n")
    return board, page


def _rows_of_others(own: Sequence[Row], field: Sequence[Row]) -> list[Row]:
    """Returns the field's rows of methods that one's own rows do not have.

    The field's rows of `off` are kept if they are of another text: the field's scores need them.
    """
    methods = {row["method"] for row in own} - {OFF}
    there = {
        (row["instance_digest"], row["seed"], row["corpus"]) for row in own if row["method"] == OFF
    }
    return [
        row
        for row in field
        if row["method"] not in methods
        and (
            row["method"] != OFF
            or (row["instance_digest"], row["seed"], row["corpus"]) not in there
        )
    ]


def overheads(folder: Path) -> dict[str, float]:
    """Returns method -> median time of a step over that of `off` on the same instance, less 1."""
    seconds: dict[str, dict[str, float]] = {}
    for file in sorted(folder.glob("*/times/*.json")):
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["steps"]:
            method = file.parent.parent.name
            seconds.setdefault(method, {})[file.stem] = values["seconds"] / values["steps"]

    off = seconds.pop(OFF, {})
    return {
        method: float(np.median([own[key] / off[key] for key in own if key in off])) - 1.0
        for method, own in seconds.items()
        if set(own) & set(off)
    }
