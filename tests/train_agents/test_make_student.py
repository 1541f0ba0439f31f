"""Tests of making a student: resume, folders of other students, and recorded facts."""

import json

import pytest
import torch
from safetensors.torch import load_file

from train_agents import make_student
from train_agents.make_student import CHECKPOINT, main

SIZES = ("--n-layer", "1", "--n-head", "1", "--n-embd", "8", "--vocabulary-texts", "200",
         "--batch-size", "2",
         "--prompt-tokens", "100", "--max-tokens", "80")  # fmt: skip


@pytest.fixture(autouse=True)
def _runs_no_programs(monkeypatch):
    monkeypatch.setattr(make_student, "held_out_rates", lambda student: {"pass": 0.5})


def made(out, *more, steps=3):
    main(
        [*SIZES, "--num-steps", str(steps), "--checkpoint-interval", "2", "--out", str(out), *more]
    )
    return load_file(out / "student.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_student, "held_out_rates", lambda student: {"pass": 0.5})
        folder = tmp_path_factory.mktemp("whole") / "student"
        return folder, made(folder)


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """The folder of a student whose training stopped after the second step."""
    checkpoint = make_student._checkpoint

    def last(*arguments):
        checkpoint(*arguments)
        raise KeyboardInterrupt

    with (
        monkeypatch.context() as patch,
        pytest.raises(SystemExit, match="the same command continues"),
    ):
        patch.setattr(make_student, "_checkpoint", last)
        made(tmp_path / "student")
    return tmp_path / "student"


def test_an_interrupted_making_goes_on_bitwise(stopped, whole):
    assert [path.name for path in stopped.iterdir()] == [CHECKPOINT]
    found = made(stopped)
    assert all(torch.equal(found[name], weight) for name, weight in whole[1].items())
    assert sorted(path.name for path in stopped.iterdir()) == [
        "student.json",
        "student.safetensors",
    ]


def test_the_checkpoint_of_another_configuration_is_refused_and_kept(stopped, capsys):
    before = (stopped / CHECKPOINT).read_bytes()
    for more in (("--seed", "1"), ("--base-lr", "0.1"), ("--demonstrations.error-fraction", "0.2")):
        with pytest.raises(SystemExit, match="2"):
            made(stopped, *more)
        assert (
            "must be of the same student; got differences (there, given)" in capsys.readouterr().err
        )
    assert (stopped / CHECKPOINT).read_bytes() == before and len(list(stopped.iterdir())) == 1


def test_a_finished_student_of_another_configuration_is_refused_and_kept(whole, capsys):
    folder, weights = whole
    before = (folder / "student.json").read_bytes()
    with pytest.raises(SystemExit, match="2"):
        made(folder, steps=4)
    assert "'num_steps': (3, 4)" in capsys.readouterr().err
    assert (folder / "student.json").read_bytes() == before
    again = made(folder, "--threads", "1")  # of the same configuration, it is made again
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize(
    ("name", "content"), [(CHECKPOINT, b"x" * 20), ("student.json", b"{}"), (CHECKPOINT, None)]
)
def test_a_file_in_the_folder_that_is_not_what_it_should_be_is_refused_by_name(
    name, content, tmp_path, capsys
):
    (tmp_path / name).mkdir() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit, match="2"):
        made(tmp_path)
    err = capsys.readouterr().err
    assert (
        f"{name} " in err and "move it away, or give another --out" in err and err.count("\n") == 1
    )


def test_the_folder_of_a_run_or_of_another_model_is_refused_and_kept(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SystemExit, match="2"):
        made(tmp_path)
    err = capsys.readouterr().err
    assert f"out must be a folder without config.json of a run or a model; got {tmp_path}" in err
    assert err.count("\n") == 1 and [child.name for child in tmp_path.iterdir()] == ["config.json"]


def test_a_student_says_how_and_on_what_machine_it_was_made(whole):
    notes = json.loads((whole[0] / "student.json").read_text())["notes"]
    assert notes["made_by"]["num_steps"] == 3 and notes["held_out"] == {"pass": 0.5}
    assert notes["facts"]["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
