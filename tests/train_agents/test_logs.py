"""Tests of a run's log: lines, TensorBoard's tags, resume, and no output without a terminal."""

import builtins
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpenv.benchmark.progress import describe, progress
from train_agents.logs import RunLog, flatten

SB3_TAGS = {"train/approx_kl": 0.01, "rollout/ep_rew_mean": 1.5, "inner/probe_loss": 3.25}


def lines(folder):
    return [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]


def scalars(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path):
    log = RunLog(tmp_path / "deep" / "run", tensorboard=False)
    log.write({"loss": 1.5}, 1)
    assert lines(tmp_path / "deep" / "run") == [{"step": 1, "loss": 1.5}]
    log.close()


def test_a_number_that_is_not_finite_is_null_in_the_line(tmp_path):
    with RunLog(tmp_path, tensorboard=False) as log:
        log.write({"a": float("nan"), "b": float("-inf"), "c": 0.0}, 1)
    assert lines(tmp_path) == [{"step": 1, "a": None, "b": None, "c": 0.0}]


def test_a_metric_may_not_take_the_key_of_the_step(tmp_path):
    with (
        RunLog(tmp_path, tensorboard=False) as log,
        pytest.raises(ValueError, match="must not have the tag 'step'"),
    ):
        log.write({"step": 3.0}, 1)


def write_steps(folder, steps, **arguments):
    with RunLog(folder, tensorboard=False, **arguments) as log:
        for step in steps:
            log.write({"loss": float(step)}, step)


def test_a_resumed_log_equals_one_that_never_stopped(tmp_path):
    write_steps(tmp_path / "whole", range(1, 6))
    write_steps(tmp_path / "resumed", range(1, 5))
    write_steps(tmp_path / "resumed", range(3, 6), resume_at=2)
    whole, resumed = (
        (tmp_path / name / "progress.jsonl").read_bytes() for name in ("whole", "resumed")
    )
    assert whole == resumed
    assert [path.name for path in (tmp_path / "resumed").iterdir()] == ["progress.jsonl"]


def test_a_log_opened_anew_forgets_everything(tmp_path):
    write_steps(tmp_path, [1, 2])
    write_steps(tmp_path, [1])
    assert lines(tmp_path) == [{"step": 1, "loss": 1.0}]


@pytest.mark.parametrize(
    "torn", ['{"step": 3, "lo', '{"step": 3, "loss": 3.0}', '{"step": 3, "lo\n', "\n", "\x00\x00"]
)
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    write_steps(tmp_path, [1, 2])
    with (tmp_path / "progress.jsonl").open("a") as file:
        file.write(torn)
    write_steps(tmp_path, [3], resume_at=2)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_a_damaged_line_in_the_middle_is_refused_and_kept(tmp_path):
    text = '{"step": 1}\nrubbish\n{"step": 2}\n'
    (tmp_path / "progress.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"progress\.jsonl, line 2, must be .*'rubbish'"):
        RunLog(tmp_path, resume_at=2, tensorboard=False)
    assert (tmp_path / "progress.jsonl").read_text() == text


def test_tensorboard_has_every_tag_at_every_step(tmp_path):
    with RunLog(tmp_path) as log:
        log.write(SB3_TAGS, 1)
        log.write(SB3_TAGS, 2)
    found = scalars(tmp_path)
    assert set(found) == set(SB3_TAGS)
    assert found["inner/probe_loss"] == [(1, 3.25), (2, 3.25)]


def test_tensorboard_hides_what_a_resumed_run_does_again(tmp_path):
    with RunLog(tmp_path) as log:
        for step in (1, 2, 3, 4):
            log.write({"inner/x": float(step)}, step)
    with RunLog(tmp_path, resume_at=2) as log:
        log.write({"inner/x": 30.0}, 3)
    assert scalars(tmp_path) == {"inner/x": [(1, 1.0), (2, 2.0), (3, 30.0)]}


def test_hyperparameters_are_written_once_with_the_metrics_that_they_are_compared_by(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    values = {
        "agent": "jel",
        "jel": {"gamma": 0.99, "hidden_sizes": [64, 64], "max_grad_norm": None},
    }
    for step in (1, 2):
        with RunLog(tmp_path, resume_at=step - 1, hyperparameters=values) as log:
            log.write({"rollout/ep_rew_mean": 1.0}, step)
    plugin = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event for event in plugin.summary_metadata if event.startswith("_hparams_")]
    begins = sum(b"jel/gamma" in file.read_bytes() for file in (tmp_path / "tensorboard").iterdir())
    assert begins == 1
    assert flatten(values) == {
        "agent": "jel", "jel/gamma": 0.99, "jel/hidden_sizes": "[64, 64]",
        "jel/max_grad_norm": "null",
    }  # fmt: skip


def test_clocks_count_from_where_the_log_was_opened(tmp_path, monkeypatch):
    seconds = iter([100.0, 102.0, 102.0])
    monkeypatch.setattr("train_agents.logs.time.monotonic", lambda: next(seconds))
    with RunLog(tmp_path, resume_at=40, tensorboard=False) as log:
        assert log.clocks(100, 3) == {
            "time/total_timesteps": 100, "time/iterations": 3, "time/time_elapsed": 2,
            "time/fps": 30,
        }  # fmt: skip


def test_tensorboard_can_be_left_out(tmp_path, monkeypatch, capsys):
    write_steps(tmp_path / "off", [1])
    assert not (tmp_path / "off" / "tensorboard").exists()
    real = builtins.__import__

    def without(name, *rest, **named):
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with RunLog(tmp_path / "missing") as log:
        log.write({"a": 1.0}, 1)
    assert lines(tmp_path / "missing") == [{"step": 1, "a": 1.0}]
    assert "hpenv[agents]" in capsys.readouterr().err


def test_a_short_program_without_a_terminal_prints_no_progress(tmp_path, capsys):
    with (
        RunLog(tmp_path, tensorboard=False) as log,
        log.progress(3, "training", completed=1) as advance,
    ):
        advance()
        advance(1, "return 1.0")
    assert capsys.readouterr() == ("", "")


def test_a_log_file_gets_a_line_of_progress_now_and_then(monkeypatch, capsys):
    now = iter([0.0, 10.0, 40.0, 40.0, 50.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    with progress(5, "rows", completed=1) as advance:
        advance(1, "first")  # 10 s after the start
        advance(1, "second")  # 40 s
        advance(2)  # 10 s after that line
    assert capsys.readouterr() == ("", "rows: 3 of 5, second\n")


def test_progress_shows_a_terminal_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress(3, "training [a]", completed=1) as advance:
        advance(2, "return [1.0]")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "training [a]" in shown.err and "3/3" in shown.err and "return [1.0]" in shown.err


@dataclass(frozen=True)
class Inner:
    rate: float = 1e-3


@dataclass(frozen=True)
class Config:
    inner: Inner = Inner()
    out: Path = Path("runs/x")


@pytest.mark.parametrize("config", [Config(), {"inner": {"rate": 1e-3}, "out": "runs/x"}])
def test_the_configuration_is_printed_whole(config, capsys):
    describe(config)
    assert json.loads(capsys.readouterr().out) == {"inner": {"rate": 1e-3}, "out": "runs/x"}


def test_a_terminal_sees_the_same_configuration(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")
    describe(Config())
    assert json.loads(capsys.readouterr().out) == {"inner": {"rate": 1e-3}, "out": "runs/x"}
