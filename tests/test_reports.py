"""The committed reports are those of their job files."""

import shutil
from importlib import import_module
from pathlib import Path

import pytest

RESULTS = Path("results")


@pytest.mark.parametrize("name", ["jel", "sidecar", "projection"])
def test_report_only_writes_the_committed_summary_byte_for_byte(name, tmp_path):
    """A change of the code that reads job files must not change a number."""
    shutil.copytree(RESULTS / name / "jobs", tmp_path / "jobs")
    program = import_module(f"train_agents.experiments.{name}")
    program.main(["--report-only", "--out", str(tmp_path)])
    committed = (RESULTS / name / "summary.json").read_bytes()
    assert (tmp_path / "summary.json").read_bytes() == committed
    assert (tmp_path / "README.md").stat().st_size > 1000
    assert list(tmp_path.glob("*.png"))
