"""Rows: one file per block, the same bytes whatever was interrupted, and errors that show both."""

import json

import pytest

from hpenv.benchmark.rows import Method, blocks_of, compute_block, is_done, read_rows
from tests.hpenv.benchmark.tiny_suite import TINY, Braking, row_of, tiny_suite


def test_rows_are_the_same_bytes_whatever_was_interrupted(tmp_path):
    method = Method("braking", Braking(), "d")
    for folder in ("whole", "halves"):
        for number, block in enumerate(blocks_of(tiny_suite(), method, tmp_path / folder)):
            if folder == "halves" and number == 1:
                block.file.parent.joinpath(f".{block.file.name}.1.tmp").write_text("half a li")
            assert not is_done(block)
            compute_block(block)
            assert is_done(block)

    whole, halves = (
        {file.name: file.read_bytes() for file in (tmp_path / folder / "braking").glob("*.jsonl")}
        for folder in ("whole", "halves")
    )
    assert whole == halves and len(whole) == 4
    rows = read_rows([tmp_path / "whole", tmp_path / "halves"])
    assert len(rows) == 6
    assert rows == read_rows([tmp_path / "halves"])


def test_another_number_under_the_same_key_is_an_error_that_shows_both(tmp_path):
    suite = tiny_suite(num_seeds=1, block_size=1)
    block = blocks_of(suite, Method("braking", Braking()), tmp_path / "one")[0]
    compute_block(block)
    copied = tmp_path / "two" / "first.jsonl"
    copied.parent.mkdir()
    row = json.loads(block.file.read_text())
    copied.write_text(json.dumps(row | {"final": 1.25}) + "\n")
    with pytest.raises(ValueError, match=rf"{row['final']}.*1\.25"):
        read_rows([tmp_path])


def test_rows_of_another_controller_or_other_seeds_are_refused(tmp_path):
    suite = tiny_suite(num_seeds=2)
    compute_block(blocks_of(suite, Method("braking", Braking(), "old"), tmp_path)[0])
    with pytest.raises(ValueError, match=r"'controller_digest': 'new'.*give the method another"):
        is_done(blocks_of(suite, Method("braking", Braking(), "new"), tmp_path)[0])
    with pytest.raises(ValueError, match="must hold the seeds"):
        is_done(blocks_of(suite, Method("braking", Braking(), "old"), tmp_path, seeds=1)[0])


def test_curves_of_a_row_have_at_most_64_points(tmp_path):
    row = row_of(TINY | {"num_steps": 80, "interval": 1, "batch_tokens": 32}, tmp_path)
    assert [len(row["curve"][name]) for name in ("steps", "probe_loss")] == [64, 64]
    assert row["curve"]["steps"][0] == 0 and row["curve"]["steps"][-1] == 80
    assert len(row["panel"]["lr"]) == 64
