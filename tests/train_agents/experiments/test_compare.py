import pytest

from hpenv.benchmark.results import write_result
from train_agents.experiments.compare import comparison


def write(folder, name, scores, corpus="text"):
    rows = [{"seed": seed, "corpus": corpus, "bpb": score} for seed, score in enumerate(scores)]
    write_result(folder / f"{name}.json", name, {}, rows)


def test_jobs_of_both_folders_are_compared_by_seed(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    write(old, "a", [2.0, 4.0])
    write(new, "a", [1.8, 3.6])
    write(old, "b", [1.0, 1.0])
    table = comparison(old, new)
    assert (
        "| a | 3.000 ± 1.414 | 2.700 ± 1.273 | +10.00% [+10.00%, +10.00%] | 2 |" in table
        and "| b |" not in table
    )


def test_other_seeds_another_corpus_and_no_common_job_are_refused(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    write(old, "a", [2.0, 4.0])
    with pytest.raises(ValueError, match="must hold job files of the same names; got none"):
        comparison(old, new)
    write(new, "a", [2.0, 4.0, 5.0])
    with pytest.raises(ValueError, match=r"a\.json must be of the same seeds and corpus"):
        comparison(old, new)
    write(new, "a", [2.0, 4.0], corpus="another")
    with pytest.raises(ValueError, match=r"a\.json must be of the same seeds and corpus"):
        comparison(old, new)
