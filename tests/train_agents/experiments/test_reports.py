"""The committed reports are those of their job files."""

import shutil
from importlib import import_module
from pathlib import Path

import pytest

RESULTS = Path("results")


@pytest.mark.parametrize("name", ["jel", "sidecar", "projection", "adaptive", "attached"])
def test_report_only_writes_the_committed_summary_and_page_byte_for_byte(name, tmp_path):
    """A change of the code that reads job files must not change a number."""
    folder = tmp_path / name
    shutil.copytree(RESULTS / name / "jobs", folder / "jobs")
    shutil.copy(RESULTS / "benchmarks.json", tmp_path)
    program = import_module(f"train_agents.experiments.{name}")
    program.main(["--report-only", "--out", str(folder)])
    for file in ("summary.json", "README.md"):
        assert (folder / file).read_bytes() == (RESULTS / name / file).read_bytes()
    pictures = {file.name for file in folder.glob("*.png")}
    assert pictures == {file.name for file in (RESULTS / name).glob("*.png")}
