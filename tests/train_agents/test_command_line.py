"""Tests of mistakes on a command line: one line on stderr, exit code 2, and nothing has run."""

import json
import runpy
import sys

import gymnasium as gym
import pytest

from hpenv.benchmark.command_line import refusals
from hpenv.posttraining.sandbox import SandboxUnavailable
from train_agents import train

TRAIN, ONLINE, EVALUATE = "train_agents.train", "train_agents.online", "train_agents.evaluate"
HINDSIGHT = "train_agents.hindsight"
STUDENT, BASELINES, BENCHMARKS = "train_agents.make_student", "baselines.run", "speed.run"
JEL, SIDECAR, PROJECTION = (
    f"train_agents.experiments.{name}" for name in ("jel", "sidecar", "projection")
)
EXPERIMENTS, PROBLEMS = (JEL, SIDECAR, PROJECTION), "hpenv.posttraining.grading.check_problems"

#: Module, arguments, and text of the line. `file` and `folder` exist, `absent` does not.
MISTAKES = [
    *(
        (module, ["--env", "TrainLoop-JLE-v0"], "got 'TrainLoop-JLE-v0'")
        for module in (TRAIN, ONLINE, EVALUATE, HINDSIGHT)
    ),
    *(
        (module, ["--env", "CartPole-v1"], "the id of a TrainLoopVectorEnv")
        for module in (TRAIN, ONLINE, EVALUATE)
    ),
    *((module, ["--env-kwargs", "lrr=1"], "'lrr'") for module in (TRAIN, ONLINE, EVALUATE)),
    *(
        (module, ["--env-kwargs", "lr"], "must be key=value")
        for module in (TRAIN, ONLINE, EVALUATE)
    ),
    *(
        (module, ["--env-kwargs", "batch_tokens=0"], "batch_tokens")
        for module in (TRAIN, ONLINE, EVALUATE)
    ),
    *((module, ["--env-kwargs", "preset=[1]"], "preset") for module in (TRAIN, ONLINE, EVALUATE)),
    *(
        (module, ["--env-kwargs", "data=absent.txt"], "absent.txt")
        for module in (TRAIN, ONLINE, EVALUATE)
    ),
    *(
        (module, ["--env-kwargs", "num_envs=2"], "must leave out")
        for module in (TRAIN, ONLINE, EVALUATE)
    ),
    *(
        (module, ["--out", "file"], "file is no folder")
        for module in (TRAIN, ONLINE, STUDENT, HINDSIGHT, *EXPERIMENTS)
    ),
    *(
        (module, ["--out", "file/x"], "file is no folder")
        for module in (TRAIN, ONLINE, STUDENT, HINDSIGHT, *EXPERIMENTS)
    ),
    *(
        (module, ["--out", "/proc/absent"], "can be written")
        for module in (TRAIN, ONLINE, STUDENT, *EXPERIMENTS)
    ),
    *(
        (module, ["--out", "folder"], "which is a folder")
        for module in (EVALUATE, BASELINES, BENCHMARKS)
    ),
    *(
        (module, ["--out", "file/x.json"], "file is no folder")
        for module in (EVALUATE, BASELINES, BENCHMARKS)
    ),
    *(
        (module, ["--out", "/proc/absent/x.json"], "can be written")
        for module in (EVALUATE, BASELINES, BENCHMARKS)
    ),
    *(
        (module, ["--report-only", "--out", "absent"], "with results; got none")
        for module in EXPERIMENTS
    ),
    (EVALUATE, ["--controller", "absent"], "there is no 'absent' in"),
    (EVALUATE, ["--controller", "folder"], "folder must hold a saved policy"),
    (EVALUATE, ["--controller", "absent.py:Own"], "there is no file absent.py"),
    (ONLINE, ["--controller", "json:Own"], "must name a class or function of json"),
    (EVALUATE, ["--env-kwargs", "seed_mode=grouped"], "got 'grouped'"),
    (ONLINE, ["--env-kwargs", "seed_mode=grouped"], "must leave out seed_mode"),
    (ONLINE, ["--env-kwargs", "preset=nano", "data=synthetic", "channels=lrr"], "unknown channels"),
    (STUDENT, ["--n-embd", "10", "--n-head", "3", "--vocabulary-texts", "20"], "n_embd"),
    (STUDENT, ["--max-tokens", "2", "--vocabulary-texts", "20"], "max_tokens must be at least"),
    (BASELINES, ["--baselines", "best"], "got 'best'"),
    (BASELINES, ["--preset", "absent"], "absent"),
    (BASELINES, ["--tune", "--tuned", "folder"], "which is a folder"),
    (BASELINES, ["--tune", "--log", "file"], "file, line 1, must be JSON"),
    (BENCHMARKS, ["--only", "speed"], "only must be some of"),
    (BENCHMARKS, ["--meta-tokens", "100"], "multiple of sequence_length"),
    (JEL, ["--interval", "600"], "interval"),
    (SIDECAR, ["--only", "sweeep"], "got ['sweeep']"),
    (SIDECAR, ["--preset", "absent"], "absent"),
    (PROJECTION, ["--only", "vanila"], "got ['vanila']"),
    (PROJECTION, ["--student", "absent"], "no student in"),
    (PROJECTION, ["--num-samples", "0"], "num_samples"),
    (PROBLEMS, ["absent.jsonl"], "cannot be read"),
    (
        "train_agents.experiments.compare",
        ["absent", "folder"],
        "must hold job files of the same names",
    ),
]
#: Refused by the parser of the command line, which prints a box.
NUMBERS = [
    *((module, ["--seed", "-1"], "seed must be at least 0") for module in (TRAIN, STUDENT)),
    *(
        (module, ["--first-seed", "-1"], "first_seed must be at least 0")
        for module in (ONLINE, EVALUATE, BASELINES)
    ),
    *(
        (module, ["--threads", "0"], "threads must be at least 1")
        for module in (TRAIN, ONLINE, EVALUATE, STUDENT)
    ),
    *((module, ["--num-workers", "0"], "num_workers must be at least 1") for module in EXPERIMENTS),
    (BASELINES, ["--seeds", "0"], "seeds must be at least 1"),
    (EVALUATE, ["--seeds", "0"], "seeds must be at least 1"),
    (BENCHMARKS, ["--rounds", "0"], "rounds must be at least 1"),
    (TRAIN, ["--num-envs", "3"], "must be a multiple of num_envs=3"),
    (TRAIN, ["--ppo.gamma", "0.5"], "ppo must be left out"),
    (TRAIN, ["--num-updates", "many"], "invalid"),
    (TRAIN, ["--num-update", "3"], "--num-update"),
]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a module as `python -m` does. Returns its exit code, stdout and stderr.

    A refused run leaves no files.
    """
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "readme").write_text("x")
    (tmp_path / "file").write_text("x\n")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))

    def run(module, arguments):
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        assert sorted(tmp_path.rglob("*")) == before
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize(("module", "arguments", "text"), MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2_before_anything_runs(module, arguments, text, run):
    code, _, err = run(module, arguments)
    assert code == 2 and err.startswith("error: ") and text in err and err.count("\n") == 1


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize(("module", "arguments", "text"), NUMBERS)
def test_an_impossible_number_is_exit_code_2_without_a_traceback(module, arguments, text, run):
    code, out, err = run(module, arguments)
    assert (
        code == 2
        and out == ""
        and text in " ".join(err.replace("│", " ").split())
        and "Traceback" not in err
    )


def test_a_defect_while_the_program_works_keeps_its_traceback(monkeypatch):
    class Broken:
        def __init__(self, config, ranks):
            pass

        def run(self):
            raise ValueError("a defect")

    monkeypatch.setattr(train, "Training", Broken)
    with pytest.raises(ValueError, match="a defect"):
        train.main([])


@pytest.mark.parametrize(
    "error",
    [ValueError("a\nb"), OSError("a b"), ModuleNotFoundError("a b"), gym.error.NameNotFound("a b"),
     SandboxUnavailable("a b")],
)  # fmt: skip
def test_what_a_check_refuses_is_told_in_one_line(error, capsys):
    with pytest.raises(SystemExit) as ended, refusals():
        raise error
    assert ended.value.code == 2 and capsys.readouterr().err == "error: a b\n"


@pytest.mark.parametrize(
    "kind", [KeyError, AttributeError, TypeError, RuntimeError, AssertionError]
)
def test_a_defect_in_a_check_keeps_its_traceback(kind):
    with pytest.raises(kind), refusals():
        raise kind("ours")


def test_the_whole_configuration_is_printed_before_a_refusal(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train.main(["--out", str(tmp_path / "run"), "--env", "TrainLoop-JLE-v0"])
    assert json.loads(capsys.readouterr().out)["env"] == "TrainLoop-JLE-v0"
