"""Jobs that are not repeated, and results that are checked before they run."""

import json

import pytest

from hpenv.benchmark.results import write_result
from tests.train_agents.experiments.made_up_results import count
from train_agents.experiments.runner import Job, check_results, open_jobs, run_jobs, select_jobs
from train_agents.experiments.sidecar import ExperimentConfig as SidecarExperiment
from train_agents.experiments.sidecar import make_jobs as make_sidecar_jobs


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Folder of jobs of which one failed, the file that they leave a trace in, and the error."""
    folder = tmp_path_factory.mktemp("jobs")
    arguments = {"file": str(folder / "trace")}
    jobs = [Job("bad", count, arguments | {"fail": True}), Job("good", count, arguments)]
    with pytest.raises(RuntimeError) as error:
        run_jobs(jobs, folder / "jobs", 1)
    return folder, arguments, error


def test_a_failed_job_is_named_after_the_others_are_done(ran):
    folder, _, error = ran
    assert error.match(r"1 pieces of work failed.*bad.*no luck")
    assert [file.name for file in (folder / "jobs").iterdir()] == ["good.json"]


def test_a_job_that_has_a_result_is_not_run_again(ran):
    folder, arguments, _ = ran
    before = (folder / "trace").read_text()
    run_jobs([Job("good", count, arguments)], folder / "jobs", 1)
    assert (folder / "trace").read_text() == before == "xx"
    assert json.loads((folder / "jobs" / "good.json").read_text())["extra"] == {"note": "done"}


def test_a_result_of_another_configuration_is_refused(ran):
    folder, arguments, _ = ran
    with pytest.raises(
        ValueError, match=r"good.json must be a result of this configuration; .*'fail'"
    ):
        run_jobs([Job("good", count, arguments | {"fail": True})], folder / "jobs", 1)


def test_a_file_that_is_no_result_and_a_folder_that_cannot_be_are_refused_before_any_job_runs(
    tmp_path,
):
    jobs = [Job("one", count, {"file": str(tmp_path / "trace")})]
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "one.json").write_text("{}")
    with pytest.raises(ValueError, match=r"one\.json must be a JSON object with the keys"):
        run_jobs(jobs, tmp_path / "jobs", 1)
    (tmp_path / "other" / "one.json").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"must be a file.*one\.json, which is a folder"):
        run_jobs(jobs, tmp_path / "other", 1)
    with pytest.raises(ValueError, match="out must be a folder"):
        run_jobs(jobs, tmp_path / "jobs" / "one.json", 1)
    assert open_jobs(jobs, tmp_path / "new") == jobs and not (tmp_path / "new").exists()
    assert not (tmp_path / "trace").exists()


def test_results_can_be_reported_if_there_are_any_and_all_are_results(tmp_path):
    with pytest.raises(ValueError, match="with results; got none"):
        check_results(tmp_path)
    write_result(tmp_path / "a.json", "a", {}, [])
    check_results(tmp_path)
    (tmp_path / "b.json").write_text("")
    with pytest.raises(ValueError, match=r"b\.json must be a JSON object"):
        check_results(tmp_path)


def test_jobs_are_selected_by_how_they_begin():
    jobs = make_sidecar_jobs(SidecarExperiment())
    assert [job.name for job in select_jobs(jobs, ("sweep", "detached"))] == [
        "detached", "sweep_constant", "sweep_schedule",
    ]  # fmt: skip
    assert select_jobs(jobs, ()) == jobs
    with pytest.raises(ValueError, match=r"only must be beginnings of .*got \['sweeep'\]"):
        select_jobs(jobs, ("sweeep",))
