"""The benchmark's command line: run, missing, board, validate, list, generate."""

import json
import shutil

import pytest

from hpenv.benchmark import __main__ as program
from hpenv.benchmark import scoring
from hpenv.benchmark.generate import GENERATORS
from hpenv.benchmark.rows import line_of, read_rows


@pytest.fixture
def project(tmp_path, monkeypatch, scored):
    """A working folder with a controller in a file and a suite in another."""
    _, suite, values, _ = scored
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nfrom hpenv.policies import ControllerSpec\n\n\n"
        "class Mine:\n"
        "    spec = ControllerSpec(channels=[('lr', 'run')], observation=['progress'])\n\n"
        "    def act(self, observations):\n"
        "        return np.full((len(observations), 1), 0.5, np.float32)\n"
    )
    (tmp_path / "tiny.json").write_text(suite.text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scoring, "load_references", lambda name: values)
    return tmp_path


def test_run_missing_and_board_of_a_controller_in_a_file(project, capsys):
    common = ["--suite", "tiny.json", "--folder", "out"]
    program.main(["missing", "mine.py:Mine", *common])
    assert len(capsys.readouterr().out.splitlines()) == 10
    program.main(["run", "mine.py:Mine", *common, "--executor", "inline", "--tuning", "3"])
    printed = capsys.readouterr().out
    assert "mine on tiny: score" in printed and "rank 1 of 2" in printed
    program.main(["missing", "mine.py:Mine", *common])
    assert capsys.readouterr().out == ""
    row = read_rows([project / "out"])[0]
    assert row["costs"] == {"tuning": 3.0} and len(row["controller_digest"]) == 12

    before = (project / "out/tiny/board.html").read_bytes()
    program.main(["board", *common])
    assert "| mine" in capsys.readouterr().out
    assert (project / "out/tiny/board.html").read_bytes() == before

    with (project / "mine.py").open("a") as file:
        file.write("# another version\n")
    with pytest.raises(SystemExit):
        program.main(["run", "mine.py:Mine", *common, "--executor", "inline"])
    assert "give the method another name" in capsys.readouterr().err


def test_list_and_generate(capsys):
    program.main(["list"])
    assert "pretraining-v1" in capsys.readouterr().out
    program.main(["list", "smoke"])
    assert len(capsys.readouterr().out.splitlines()) == 4
    program.main(["generate", "smoke"])
    assert capsys.readouterr().out == GENERATORS["smoke"]().text()


def test_validate_computes_a_submission_again(project, capsys):
    program.main(
        ["run", "mine.py:Mine", "--suite", "tiny.json", "--folder", "out", "--executor", "inline"]
    )
    place = project / "submission"
    (place / "rows").mkdir(parents=True)
    shutil.copy("mine.py", place)
    shutil.copytree("out/tiny/rows/mine", place / "rows/mine")
    (place / "submission.toml").write_text(
        'name = "mine"\nsuite = "tiny.json"\ncontroller = "mine.py:Mine"\nauthors = ["A. Nonym"]\n'
        'description = "half way up"\nmeta_training = 0.0\ntuning = 0.0\n'
    )
    capsys.readouterr()
    program.main(["validate", str(place)])
    assert "2 blocks, each twice, bitwise equal; equal to the submitted rows" in (
        capsys.readouterr().out
    )

    program.main(["run", "submission", "--suite", "tiny.json", "--folder", "again"])
    assert "mine on tiny: score" in capsys.readouterr().out
    again, submitted = read_rows([project / "again/tiny/rows/mine"]), read_rows([place / "rows"])
    assert [row["final"] for row in again] == [row["final"] for row in submitted]
    assert again[0]["costs"] == {"meta_training": 0.0, "tuning": 0.0}
    with pytest.raises(SystemExit):
        program.main(["missing", "submission", "--suite", "smoke"])
    assert "give --suite tiny.json" in capsys.readouterr().err

    file = next((place / "rows/mine").glob("second*.jsonl"))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["final"] += 1e-6
    file.write_text("".join(line_of(row) for row in rows))
    with pytest.raises(SystemExit):
        program.main(["validate", str(place)])
    assert "must have the submitted number" in capsys.readouterr().err
