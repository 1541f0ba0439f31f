"""Arguments that cannot be run are refused by name."""

import math
from dataclasses import replace
from functools import partial

import pytest

from hpenv.optim.schedules import Constant
from tests.hpenv.pretraining.small_plants import GROUPS, TINY, make

CONFIG, PLANT = partial(replace, TINY), partial(make)


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (CONFIG, {"base_lr": -1e-3}, "base_lr must be finite and not negative; got -0.001"),
        (CONFIG, {"base_lr": math.nan}, "base_lr must be finite and not negative; got nan"),
        (CONFIG, {"base_lr": math.inf}, "base_lr must be finite and not negative; got inf"),
        (CONFIG, {"base_lr": "fast"}, "base_lr must be finite and not negative; got 'fast'"),
        (
            CONFIG,
            {"base_weight_decay": {"matrix": -1.0}},
            "base_weight_decay must be finite and not negative; got {'matrix': -1.0}",
        ),
        (CONFIG, {"batch_tokens": 0}, "batch_tokens must be a whole number of at least 1; got 0"),
        (
            CONFIG,
            {"sequence_length": -4},
            "sequence_length must be a whole number of at least 1; got -4",
        ),
        (
            CONFIG,
            {"num_probe_batches": 0},
            "num_probe_batches must be a whole number of at least 1; got 0",
        ),
        (
            CONFIG,
            {"batch_tokens": 100},
            "batch_tokens must be a multiple of sequence_length=16; got 100",
        ),
        (
            CONFIG,
            {"dtype": "float16"},
            r"unknown dtype 'float16'; expected one of \['bfloat16', 'float32'\]",
        ),
        (
            CONFIG,
            {"divergence_multiple": 1.0},
            "divergence_multiple must be a number above 1; got 1.0",
        ),
        (PLANT, {"num_rows": 0}, "num_rows must be a whole number of at least 1; got 0"),
        (PLANT, {"optimizer": "adam"}, r"unknown optimizer 'adam'; expected one of \['adamw', "),
        (PLANT, {"preset": "giant"}, r"unknown preset 'giant'; expected one of \['cell11', "),
        (
            PLANT,
            {"data": "wikipedia"},
            "unknown data 'wikipedia'; expected one of 'stdlib', 'synthetic",
        ),
        (
            PLANT,
            {"channels": [("speed", "run")]},
            r"unknown channel 'speed'; expected one of \['attention_gain', ",
        ),
        (
            PLANT,
            {"base_lr": {"matrix": 1e-3}},
            r"base_lr must have .* the groups \['emb.*; got the groups \['matrix'\]",
        ),
        (
            PLANT,
            {"base_weight_decay": dict.fromkeys((*GROUPS, "scalar"), 0.1)},
            "base_weight_decay must have one value, or one for each of the groups",
        ),
        (
            PLANT,
            {"lr_schedule": {"matrices": Constant()}},
            r"lr_schedule must have .*; got the groups \['matrices'\]",
        ),
        (PLANT, {"num_rows": 2, "seeds": [1]}, "seeds must be 2 numbers, one for each row; got 1"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(build, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_a_corpus_that_is_too_short_is_refused_with_both_numbers(tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("x" * 1000)
    with pytest.raises(ValueError, match=r"probe slice .* at least 80 tokens; got 50"):
        make(data=str(text))
