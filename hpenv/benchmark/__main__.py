"""Scores controllers on suites: `python -m hpenv.benchmark {run,missing,board,validate,list}`.

run       computes the rows of controllers on a suite, and writes the board
missing   lists the rows that are not there yet
board     writes the board of rows that are there
validate  computes two rows of a submission twice, and compares them bitwise
list      lists suites, or the instances of one
generate  prints a suite as its generator makes it
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hpenv.benchmark import executors
from hpenv.benchmark.command_line import refusals
from hpenv.benchmark.controllers import FORMS
from hpenv.benchmark.generate import GENERATORS
from hpenv.benchmark.instances import load_suite, suite_names
from hpenv.benchmark.methods import OFF, REFERENCE, Method, method_of
from hpenv.benchmark.rows import is_done
from hpenv.benchmark.scoring import (
    FOLDER,
    Result,
    all_blocks,
    check_scorable,
    needs_reference,
    reference_method,
    run_methods,
    write_board,
)
from hpenv.benchmark.submissions import is_submission, read_submission, submitted_method
from hpenv.benchmark.validation import validate

#: Help of the argument that names controllers.
CONTROLLERS = f"{FORMS}; the folder of a submission; or {OFF}, or {REFERENCE}"


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    root = argparse.ArgumentParser(
        "python -m hpenv.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = root.add_subparsers(dest="command", required=True)

    for name, about in (
        ("run", "compute the rows of controllers, and write the board"),
        ("missing", "list the rows that are not there yet"),
    ):
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("controllers", nargs="+", help=CONTROLLERS)
        command.add_argument("--name", help="name on the board, of a single controller")
        command.add_argument("--seeds", type=int, help="seeds of every instance (default: all)")
        _add_common(command)
        if name == "run":
            command.add_argument(
                "--executor", default="processes", help=f"{executors.FORMS} (default: processes)"
            )
            for cost in ("meta-training", "tuning"):
                command.add_argument(
                    f"--{cost}",
                    type=float,
                    help=f"cost of {cost} [runs of an instance, by tokens], of a single controller",
                )

    command = commands.add_parser("board", help="write the board of rows that are there")
    command.add_argument(
        "--rows", nargs="*", type=Path, default=[], help="further files or folders"
    )
    command.add_argument("--seeds", type=int, help="seeds of every instance (default: all)")
    _add_common(command)

    command = commands.add_parser("validate", help="compute two rows of a submission twice")
    command.add_argument("submission", type=Path, help="folder with submission.toml and rows")

    command = commands.add_parser("list", help="list suites, or the instances of one")
    command.add_argument("suite", nargs="?", help="name of a suite")

    command = commands.add_parser("generate", help="print a suite as its generator makes it")
    command.add_argument("suite", choices=sorted(GENERATORS))
    return root


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--suite", default="jel-nano", help=f"one of {suite_names()}, or a .json file"
    )
    command.add_argument(
        "--folder", type=Path, default=FOLDER, help=f"rows and boards (default: {FOLDER})"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program."""
    given = parser().parse_args(arguments)
    {
        "run": _run,
        "missing": _missing,
        "board": _board,
        "validate": _validate,
        "list": _list,
        "generate": _generate,
    }[given.command](given)


def _methods(given: argparse.Namespace) -> list[Method]:
    if given.name and len(given.controllers) > 1:
        raise ValueError(
            f"name must be given with a single controller; got {len(given.controllers)}"
        )
    suite = load_suite(given.suite)
    costs = {
        name: value
        for name in ("meta_training", "tuning")
        if (value := getattr(given, name, None)) is not None
    }
    special = {OFF: Method(OFF, None), REFERENCE: reference_method(suite)}
    methods = []
    for name in given.controllers:
        if is_submission(name):
            methods.append(_submitted(Path(name), suite.name))
        else:
            own = special.get(name) or method_of(name, given.name or "", costs or None)
            methods.append(own)
    return methods


def _submitted(folder: Path, suite: str) -> Method:
    values = read_submission(folder)
    if load_suite(values["suite"]).name != suite:
        raise ValueError(
            f"suite must be {values['suite']!r}, of the submission {folder}; got {suite!r}; "
            f"give --suite {values['suite']}"
        )
    return submitted_method(folder)


def _run(given: argparse.Namespace) -> None:
    with refusals():
        suite = load_suite(given.suite)
        check_scorable(suite, given.seeds)
        methods = _methods(given)
        place = given.folder / suite.name
        if OFF not in [method.name for method in methods]:
            methods = [Method(OFF, None), *methods]
        for block in all_blocks(suite, methods, place, given.seeds):
            is_done(block)

    try:
        run_methods(suite, methods, place, seeds=given.seeds, executor=given.executor)
        if needs_reference(suite, place):
            print("the text of these runs is not that of the references: running their rates")
            reference = [reference_method(suite)]
            run_methods(suite, reference, place, seeds=given.seeds, executor=given.executor)
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on with the rows that are missing")

    board, page = write_board(suite, place, seeds=given.seeds)
    for method in methods:
        if method.name not in (OFF, REFERENCE):
            print(Result(method.name, board, page))


def _missing(given: argparse.Namespace) -> None:
    with refusals():
        suite = load_suite(given.suite)
        blocks = all_blocks(suite, _methods(given), given.folder / suite.name, given.seeds)
        left = [block for block in blocks if not is_done(block)]
    for block in left:
        for seed in block.seeds:
            print(block.method.name, block.instance.name, seed)
    print(f"{len(left)} of {len(blocks)} blocks are missing", file=sys.stderr)


def _board(given: argparse.Namespace) -> None:
    with refusals():
        suite = load_suite(given.suite)
        _, page = write_board(
            suite, given.folder / suite.name, seeds=given.seeds, others=given.rows
        )
    print((page.parent / "board.md").read_text(encoding="utf-8"), end="")
    print(f"page: {page}")


def _validate(given: argparse.Namespace) -> None:
    with refusals():
        print(validate(given.submission))


def _list(given: argparse.Namespace) -> None:
    with refusals():
        if given.suite is None:
            for name in suite_names():
                suite = load_suite(name)
                size = f"{len(suite.test)} test instances, {suite.num_seeds} seeds"
                print(f"{name:16} {size}: {suite.about}")
            return
        suite = load_suite(given.suite)
    for instance in suite.instances:
        print(
            f"{instance.name:24} {instance.split:6} {instance.digest}  {dict(instance.arguments)}"
        )


def _generate(given: argparse.Namespace) -> None:
    print(GENERATORS[given.suite]().text(), end="")


if __name__ == "__main__":
    main()
