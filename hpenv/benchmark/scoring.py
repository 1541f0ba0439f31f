"""The score of a controller on a suite, in one call: rows, board, rank and page."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpenv.benchmark.aggregates import FEWEST_SEEDS
from hpenv.benchmark.board import Board, Standing, make_board
from hpenv.benchmark.controllers import load_controller
from hpenv.benchmark.executors import open_executor, run_all
from hpenv.benchmark.files import check_folder, write_text
from hpenv.benchmark.instances import Suite, load_suite
from hpenv.benchmark.page import html_board, markdown_board
from hpenv.benchmark.progress import progress
from hpenv.benchmark.references import REFERENCE, References, load_references
from hpenv.benchmark.rows import (
    OFF,
    Block,
    Method,
    blocks_of,
    compute_block,
    is_done,
    read_rows,
)
from hpenv.policies.controller import Controller, check_controller

#: Rows of the field that ship with the package, one file per suite.
FIELD = Path(__file__).with_name("field")
Row = dict[str, Any]
#: Default folder of rows and boards.
FOLDER = Path("runs/benchmark")
#: A method's name is a folder's.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


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
        lines.append(f"page: {self.page}")
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
    place = Path(folder) / chosen.name
    check_folder("folder", place)
    method = method_of(controller, name, costs)
    if not isinstance(controller, str):
        shutil.rmtree(place / "rows" / method.name, ignore_errors=True)
        executor = "inline" if controller is not None else executor

    needed = [Method(OFF, None)] if method.name != OFF else []
    run_methods(chosen, [*needed, method], place, seeds=seeds, executor=executor)
    if needs_reference(chosen, place):
        run_methods(chosen, [reference_method(chosen)], place, seeds=seeds, executor=executor)
    board, page = write_board(chosen, place, seeds=seeds)
    return Result(method.name, board, page)


def method_of(
    controller: Controller | str | None, name: str = "", costs: Mapping[str, float] | None = None
) -> Method:
    """Returns the method of a controller.

    Raises:
        ValueError: there is no such controller, or the name is no name of a folder.
    """
    if controller is None:
        return Method(OFF, None)

    loaded = load_controller(controller) if isinstance(controller, str) else controller
    check_controller(loaded)
    chosen = name or _name_of(controller)
    if not NAME.fullmatch(chosen) or chosen in (OFF, REFERENCE):
        raise ValueError(
            f"name must be letters, digits, '.', '_' and '-', and not {OFF!r} or {REFERENCE!r}; "
            f"got {chosen!r}; give another one"
        )
    digest = digest_of(controller) if isinstance(controller, str) else ""
    own = dict(costs if costs is not None else getattr(loaded, "costs", {}))
    return Method(chosen, controller, digest, own)


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
    """Returns the blocks of methods on the test instances of a suite."""
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
    field = FIELD / f"{suite.name}.jsonl"
    places = [place / "rows", *others]
    rows = read_rows(places)
    if field.is_file():
        rows += _rows_of_others(rows, read_rows([field]))

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
    there = {(row["instance_digest"], row["seed"], row["corpus"]) for row in own}
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


def _name_of(controller: Controller | str) -> str:
    if not isinstance(controller, str):
        return type(controller).__name__.lower()
    _, colon, attribute = controller.rpartition(":")
    if colon and attribute.isidentifier():
        return attribute.lower()
    path = Path(controller.rpartition("@")[2])
    return path.parent.name if path.name == "policy" else path.stem


def digest_of(controller: str) -> str:
    """Returns a hash of a named controller's files, 12 hexadecimal digits.

    A class stands for the file that defines it, a saved policy for the files of its folder.
    """
    place, colon, attribute = controller.rpartition(":")
    if colon and attribute.isidentifier():
        spec = None if place.endswith(".py") else importlib.util.find_spec(place)
        files = [Path(spec.origin if spec is not None and spec.origin else place)]
    else:
        path = Path(controller.rpartition("@")[2])
        files = sorted(path.rglob("*")) if path.is_dir() else [path]

    found = hashlib.sha256()
    for file in files:
        if file.is_file():
            found.update(file.name.encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:12]
