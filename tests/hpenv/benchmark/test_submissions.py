"""The submitted controllers: they load, have the stated name and costs, and all rows of a suite."""

import pytest

from hpenv.benchmark.instances import load_suite
from hpenv.benchmark.rows import blocks_of, read_rows
from hpenv.benchmark.submissions import is_submission, read_submission, submitted_method
from tests.paths import ROOT

FOLDERS = sorted(file.parent for file in (ROOT / "submissions").glob("*/*/submission.toml"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_submission_has_every_row_of_its_controller(folder):
    values, method = read_submission(folder), submitted_method(folder)
    suite = load_suite(values["suite"])
    assert folder.parent.name == suite.name and folder.name == values["name"]
    rows = {(row["instance_digest"], row["seed"]): row for row in read_rows([folder / "rows"])}
    for block in blocks_of(suite, method, folder):
        for seed in block.seeds:
            row = rows.pop((block.instance.digest, seed))
            assert row["controller_digest"] == method.digest
            assert row["costs"] == dict(method.costs)
    assert not rows


def test_a_folder_without_the_file_is_none(tmp_path):
    assert not is_submission(tmp_path) and not is_submission("hpenv.policies:Neutral")
    with pytest.raises(ValueError, match=r"must be a folder with submission\.toml"):
        read_submission(tmp_path)
