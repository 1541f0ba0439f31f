"""Check of a submission: its rows are those that its controller has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpenv.benchmark.files import write_text
from hpenv.benchmark.instances import load_suite
from hpenv.benchmark.rows import Block, blocks_of, compute_block, read_rows
from hpenv.benchmark.submissions import read_submission, submitted_method
from hpenv.benchmark.workers import on_one_thread

#: Facts that decide whether two machines give the same bits.
SAME_MACHINE = ("versions", "processor", "cpu_capability", "torch_threads")


def validate(folder: Path, scratch: Path | None = None) -> str:
    """Computes the first and the last block of a submission twice, and compares them bitwise.

    On the machine that the submitted rows are of, they must be equal to those, too.

    Args:
        folder: the submission: `submission.toml`, the controller, and `rows/`.
        scratch: folder for the computed rows. None: `validation` in the submission.

    Returns:
        What was checked, in words.

    Raises:
        ValueError: a file is missing or wrong, or two computations differ.
    """
    values = read_submission(folder)
    suite, method = load_suite(values["suite"]), submitted_method(folder)
    submitted = {
        (row["instance_digest"], row["seed"]): row
        for row in read_rows([folder / "rows"])
        if row["method"] == method.name
    }

    blocks = blocks_of(suite, method, scratch or folder / "validation")
    expected: set[tuple[str, int]] = set()
    for block in blocks:
        expected |= {(block.instance.digest, seed) for seed in block.seeds}
    if missing := expected - set(submitted):
        raise ValueError(f"rows must have every instance and seed; {len(missing)} are missing")
    wrong = [row for row in submitted.values() if row["controller_digest"] != method.digest]
    if wrong:
        raise ValueError(
            f"rows must be of the submitted controller, {method.digest}; got "
            f"{wrong[0]['controller_digest']}; compute them again"
        )

    compared = 0
    chosen = blocks[:1] + blocks[1:][-1:]  # the first and the last
    for block in chosen:
        first, second = _compute(block), _compute(block)
        if first != second:
            raise ValueError(f"{block.label} must give the same rows twice; it gave other rows")
        for row in read_rows([block.file]):
            compared += _compare(row, submitted[row["instance_digest"], row["seed"]])

    own = "equal to the submitted rows" if compared else "the submitted rows are of another machine"
    return f"{method.name} on {suite.name}: {len(chosen)} blocks, each twice, bitwise equal; {own}"


def _compute(block: Block) -> str:
    write_text(block.file, "")
    on_one_thread(compute_block, block)
    return block.file.read_text(encoding="utf-8")


def _compare(row: dict[str, Any], submitted: dict[str, Any]) -> bool:
    """Returns True if a row was compared with a submitted row of this machine."""
    if any(row[name] != submitted[name] for name in SAME_MACHINE):
        return False
    different = [name for name in row if row[name] != submitted.get(name)]
    if set(different) - {"commit", "costs"}:
        raise ValueError(
            f"{row['method']} on {row['instance']} with seed {row['seed']} must have the submitted "
            f"number; got {row['final']} and {submitted['final']}"
        )
    return True
