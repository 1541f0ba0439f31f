"""Rows: one file per block, the same bytes whatever was interrupted, and errors that show both."""

import json

import pytest

from hpenv.benchmark.methods import Method
from hpenv.benchmark.rows import blocks_of, changes_of, compute_block, is_done, read_rows
from hpenv.policies import ScheduleTable
from tests.hpenv.benchmark.tiny_suite import (
    TINY,
    Braking,
    Counting,
    Longer,
    TwentyTimes,
    row_of,
    tiny_suite,
)


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


def test_rows_of_another_controller_are_refused_and_blocks_of_another_size_are_others(tmp_path):
    suite = tiny_suite(num_seeds=2)
    compute_block(blocks_of(suite, Method("braking", Braking(), "old"), tmp_path)[0])
    with pytest.raises(ValueError, match=r"'controller_digest': 'new'.*give the method another"):
        is_done(blocks_of(suite, Method("braking", Braking(), "new"), tmp_path)[0])
    assert not is_done(blocks_of(suite, Method("braking", Braking(), "old"), tmp_path, seeds=1)[0])


def test_a_baseline_changes_rates_and_schedules_alone(tmp_path):
    suite = tiny_suite(num_seeds=1)
    (block, _) = blocks_of(suite, Method("longer", Longer()), tmp_path)
    with pytest.raises(ValueError, match=r"must be of \['base_lr'.*got \['num_steps'\]"):
        compute_block(block)
    (block, _) = blocks_of(suite, Method("twenty", TwentyTimes()), tmp_path)
    compute_block(block)
    assert read_rows([block.file])[0]["changed"] == {"base_lr": 0.02}


def test_a_saved_policy_is_scored_and_its_arguments_change_no_instance(tmp_path):
    """`arguments` of a policy rebuild it. Those of a baseline are of an instance."""
    suite = tiny_suite(num_seeds=1)
    policy = ScheduleTable([[0.5, 0.0]])
    assert changes_of(policy, suite.instances[0]) == {}
    block = blocks_of(suite, Method("table", policy), tmp_path)[0]
    compute_block(block)
    (row,) = read_rows([block.file])
    assert row["method"] == "table" and row["changed"] == {}


def test_every_block_has_a_controller_that_has_seen_no_run(tmp_path):
    """A row is a function of its key: nothing learned in one block reaches another."""
    shared = Method("counting", Counting())
    for method, folder in ((shared, "shared"), (Method("counting", Counting()), "fresh")):
        blocks = blocks_of(tiny_suite(), method, tmp_path / folder)
        for block in blocks if folder == "shared" else blocks[1:2]:
            compute_block(block)
    fresh = read_rows([tmp_path / "fresh"])
    assert fresh and all(row in read_rows([tmp_path / "shared"]) for row in fresh)


def test_curves_of_a_row_have_at_most_64_points(tmp_path):
    row = row_of(TINY | {"num_steps": 80, "interval": 1, "batch_tokens": 32}, tmp_path)
    assert [len(row["curve"][name]) for name in ("steps", "probe_loss")] == [64, 64]
    assert row["curve"]["steps"][0] == 0 and row["curve"]["steps"][-1] == 80
    assert len(row["panel"]["lr"]) == 64
