"""The experiments: jobs that are not repeated, reports made from files alone, tiny whole runs."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from agents.credits import CreditStream
from hpenv.benchmark.results import write_result
from hpenv.control.channels import CHANNELS
from train_agents.experiments import jel, report, sidecar
from train_agents.experiments.jel import ARMS as METHODS
from train_agents.experiments.jel import ExperimentConfig, make_jobs
from train_agents.experiments.jel_report import REFERENCE, ablation_table, main_table, summarize
from train_agents.experiments.measures.signal import (
    CREDITS,
    Credit,
    credits_of,
    effect_size,
    measure_signal,
    steps_to_know,
)
from train_agents.experiments.report import Data, Sample, bits_per_byte, bpb_arms, samples
from train_agents.experiments.runner import Job, check_results, open_jobs, run_jobs, select_jobs
from train_agents.experiments.sidecar import ARMS, DEFAULT, late_jobs, sweep_configurations
from train_agents.experiments.sidecar import ExperimentConfig as SidecarExperiment
from train_agents.experiments.sidecar import make_jobs as make_sidecar_jobs
from train_agents.experiments.sidecar_claims import (
    CLAIMS,
    COMPARISONS,
    Claim,
    bits_at,
    in_both_units,
    verdict,
)
from train_agents.experiments.sidecar_report import final_values
from train_agents.experiments.sweeping import sweep

TINY = ExperimentConfig(
    num_steps=24, interval=2, deployment_tokens=64, meta_tokens=64, num_updates=2,

    num_controllers=2, num_ablation_controllers=1, num_points=0, num_evaluation_seeds=2,
    num_tuning_seeds=1,
)  # fmt: skip

TINY_SIDECAR = SidecarExperiment(
    data="synthetic", num_steps=24, long_steps=30, batch_tokens=32, sequence_length=16,
    eval_tokens=256,
    eval_interval=12, num_traces=6, num_evaluation_seeds=2, num_tuning_seeds=1, num_reward_seeds=2,
    hidden_size=4,
    num_probe_batches=2,
    signal_states=(1,), signal_layers=(1,), signal_batches=2, signal_noise_steps=3,
)  # fmt: skip


def count(file, fail=False):
    """A job that leaves a trace each time it is run."""
    with open(file, "a") as trace:
        trace.write("x")
    if fail:
        raise ValueError("no luck")
    return [{"seed": 1}], {"note": "done"}


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


def test_every_arm_has_a_job_and_no_two_share_a_name(tmp_path):
    names = [job.name for job in make_jobs(TINY)]
    assert len(names) == len(set(names))
    assert {"paper-0", "paper-1", "ours-0", "search_cma", REFERENCE} <= set(names)
    ablations = {f"{arm.name}-0" for arm in METHODS if arm.group == "ablation"}
    assert len(ablations) == 8 and ablations <= set(names)
    with_searches = [job.name for job in make_jobs(ExperimentConfig())]
    every = {report.arm_of(name) for name in (*names, *with_searches)}
    assert every == {arm.name for arm in METHODS}


def test_tuning_and_evaluation_seeds_are_disjoint():
    full = ExperimentConfig()
    assert not set(full.tuning_seeds) & set(full.evaluation_seeds)
    assert full.num_evaluation_seeds >= 10 and full.num_controllers >= 5
    assert full.meta_tokens * 4 <= full.deployment_tokens


def _row(seed, bpb, reason=None):
    curve = [5.5, 4.0, 3.0]
    return {
        "seed": seed, "bpb": bpb, "train_loss": 2.0, "probe_loss": 3.0, "divergence_reason": reason,
        "steps": [0, 12, 24],
        "probe_curve": curve, "train_curve": curve[1:],
        "panel": {"lr": [1.0, 2.0], "weight_decay": [1.0, 0.5]},
        "corpus": "c0ffee",
    }  # fmt: skip


def _write(folder, name, bpbs, configuration=None, extra=None):
    rows = [_row(seed, value) for seed, value in enumerate(bpbs)]
    write_result(folder / f"{name}.json", name, configuration or {}, rows, extra or {})


def _data(jobs, known=METHODS):
    return Data({arm.name: arm for arm in known}, None, jobs, bpb_arms(jobs))


def test_the_report_pairs_by_seed_and_counts_what_a_controller_cost(tmp_path):
    folder = tmp_path / "jobs"
    folder.mkdir()
    meta = {"num_steps": 24, "batch_tokens": 64}
    arguments = {
        "num_updates": 5,
        "meta_kwargs": meta,
        "deployment_kwargs": meta | {"batch_tokens": 256},
    }
    actions = {key: [[0.0, 0.0], [0.5, -0.5]] for key in ("low", "median", "high")}
    line = {"rollout/ep_rew_mean": 1.0, "train/entropy_per_cell": 0.9}
    _write(folder, REFERENCE, [4.0, 2.0])
    _write(folder, "baseline_hand_tuned", [2.0, 1.0])
    bpbs_of = ([3.0, 1.5], [2.0, 1.0], [2.5, 1.25], [2.5, 1.25], [2.5, 1.25])
    for seed, bpbs in enumerate(bpbs_of):
        _write(
            folder, f"paper-{seed}", bpbs, arguments, {"training": [line] * 5, "actions": actions}
        )
    jel.REPORT.write(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["paper"]["controllers"] == [2.25, 1.5, 1.875, 1.875, 1.875]
    half = (
        2.776 * np.std([0.25, 0.5, 0.375, 0.375, 0.375], ddof=1) / np.sqrt(5)
    )  # Student's t of 4 degrees
    np.testing.assert_allclose(
        summary["paper"]["versus"]["base"], [0.375, 0.375 - half, 0.375 + half], rtol=1e-3
    )
    np.testing.assert_allclose(summary["paper"]["versus"]["hand_tuned"][0], -0.25)
    assert summary["paper"]["run_equivalents"] == 40 * 64 / 256
    text = (tmp_path / "README.md").read_text()
    assert "JEL, the paper's hyperparameters" in text and "+37.5 %" in text
    assert {file.name for file in tmp_path.glob("*.png")} >= {
        "comparison.png",
        "figure2_dynamics.png",
        "entropy.png",
    }
    (folder / "paper-4.json").unlink()
    jel.REPORT.write(tmp_path)
    few = json.loads((tmp_path / "summary.json").read_text())["paper"]
    assert few["interval"] is None and len(few["versus"]["base"]) == 1
    assert "+37.5 % (not claimed)" in (tmp_path / "README.md").read_text()


def test_the_ablation_table_has_an_interval_over_controllers_only_of_enough_of_them():
    def members(*means):
        extra = {"training": [{"rollout/ep_rew_mean": 1.0}]}
        return [
            {"rows": [_row(0, mean - 1.0), _row(1, mean + 1.0)], "extra": extra} for mean in means
        ]

    groups = {"ppo": members(2.0, 3.0, 4.0), "paper": members(2.0, 2.0, 3.0, 4.0, 4.0)}
    jobs = {f"{arm}-{n}": each for arm, found in groups.items() for n, each in enumerate(found)}
    paper, ppo = ablation_table(_data(jobs)).splitlines()[2:]
    half = 2.77645 / np.sqrt(5)  # Student's t of 4 degrees; the standard deviation is 1
    assert f"| paper | 3.0000 [{3 - half:.4f}, {3 + half:.4f}] | 2.000 to 4.000 (5) |" in paper
    assert "| ppo | 3.0000 | 2.000 to 4.000 (3) |" in ppo


def test_an_untuned_baseline_says_that_no_runs_were_spent_and_what_is_not_recorded_is_left_empty():
    job = {"rows": [_row(0, 3.0), _row(1, 2.0)], "configuration": {}}
    jobs = {REFERENCE: {**job, "extra": {"runs_spent": 0}}, "baseline_cosine": {**job, "extra": {}}}
    first, second = sorted(
        main_table(_data(jobs)).splitlines()[2:], key=lambda row: "cosine" in row
    )
    assert first.endswith("| 0 |") and second.endswith("|  |")


def test_a_diverged_run_scores_as_a_uniform_guess():
    job = {"rows": [_row(0, 3.0), _row(1, 2.0, "loss_above_limit"), _row(2, None)]}
    np.testing.assert_array_equal(samples([job], bits_per_byte)["bpb"].values, [[3.0, 8.0, 8.0]])
    data = _data({REFERENCE: {**job, "configuration": {}, "extra": {}}})
    assert summarize(data)[REFERENCE]["diverged"] == 1


@pytest.mark.slow
def test_the_whole_experiment_runs_resumes_and_reports(tmp_path):
    config = replace(TINY, out=tmp_path / "results", runs=tmp_path / "runs")
    jobs = make_jobs(config)
    run_jobs(jobs[:3], config.out / "jobs", 2)
    run_jobs(jobs, config.out / "jobs", 2)
    jel.REPORT.write(config.out)
    summary = json.loads((config.out / "summary.json").read_text())
    expected = {arm.name for arm in METHODS if arm.group != "tuned"}
    assert expected <= set(summary)
    assert (config.out / "figure3_actions_ours.png").exists()


def test_every_arm_of_the_sidecar_has_a_job_and_the_long_runs_come_last():
    names = [job.name for job in make_sidecar_jobs(SidecarExperiment())]
    assert len(names) == len(set(names))
    assert names[:3] == ["detached", "foundational", "no_learning"]
    assert names[-4:] == ["signal", "long_detached", "long_foundational", "long_weight_decay"]
    known = {arm.name for arm in ARMS}
    assert known | {"signal"} == {report.arm_of(name) for name in names}
    assert {arm.group for arm in ARMS} == {*COMPARISONS, "sweeps"}
    for table in COMPARISONS.values():
        assert {*table.references, *table.before, *table.after} <= known
    assert {name for claim in CLAIMS for name in (claim.arm, claim.reference)} <= known


def test_jobs_are_selected_by_how_they_begin():
    jobs = make_sidecar_jobs(SidecarExperiment())
    assert [job.name for job in select_jobs(jobs, ("sweep", "detached"))] == [
        "detached", "sweep_constant", "sweep_schedule",
    ]  # fmt: skip
    assert select_jobs(jobs, ()) == jobs
    with pytest.raises(ValueError, match=r"only must be beginnings of .*got \['sweeep'\]"):
        select_jobs(jobs, ("sweeep",))


def test_the_default_is_among_what_a_sweep_tries_and_seeds_are_disjoint():
    for tried, count in zip(sweep_configurations(100).values(), (4, 6), strict=True):
        assert len(tried) == count
        assert DEFAULT["base_lr"] in [entry["base_lr"] for entry in tried.values()]
    full = SidecarExperiment()
    piloted = {2000, 2001, 2002}
    assert not set(full.evaluation_seeds) & (set(full.tuning_seeds) | piloted)
    assert not set(full.reward_seeds) & (
        set(full.tuning_seeds) | set(full.evaluation_seeds) | piloted
    )
    ran = {
        job.name: job.arguments["config"]
        for job in make_sidecar_jobs(full)
        if "config" in job.arguments
    }
    for name, config in ran.items():
        expected = full.reward_seeds if name.startswith("reward_") else full.evaluation_seeds
        if not name.startswith("reward_population"):
            assert config.row_seeds == expected
    groups = [ran[name].row_seeds for name in ran if name.startswith("reward_population")]
    assert groups == [[seed] * 5 for seed in full.reward_seeds]


def test_a_sweep_chooses_by_the_probe_alone_and_says_what_it_spent():
    arguments = TINY_SIDECAR.env_arguments(
        preset="nano", channels="layer_lr", observation="progress", reward={"progress": 1.0},
        num_registers=0,
        interval=12,
    )  # fmt: skip
    configurations = {"still": {"base_lr": 1e-9}, "moving": {"base_lr": 1e-2}}
    rows, extra = sweep(
        "TrainLoop-Cell-v0", configurations, arguments, [5, 6], [8], heldout_curve=True
    )
    tried = {entry["configuration"]: entry for entry in extra["table"]}
    assert (
        extra["chosen"] == "moving" and tried["moving"]["probe_loss"] < tried["still"]["probe_loss"]
    )
    assert extra["runs_spent"] == 4 and [len(entry["bpb"]) for entry in tried.values()] == [2, 2]
    assert [row["seed"] for row in rows] == [8] and rows[0]["bpb_curve"][-1] == rows[0]["bpb"]
    # More batches tell the probe loss better, and change nothing of the runs.
    more, _ = sweep(
        "TrainLoop-Cell-v0", configurations, arguments | {"num_probe_batches": 9}, [5], [8]
    )
    assert more[0]["bpb"] == rows[0]["bpb"] and more[0]["probe_loss"] != rows[0]["probe_loss"]
    extra["table"][0]["bpb"][0] = None
    table = report.tried_table({"extra": extra})
    assert "diverged" in table and f"{extra['chosen']} (chosen)" in table


def test_a_binding_cap_and_a_wrong_neutral_start_where_they_should():
    jobs = {job.name: job.arguments["config"].sidecar.initial_mean
            for job in make_sidecar_jobs(TINY_SIDECAR)
            if "config" in job.arguments}  # fmt: skip
    cap, skip = (CHANNELS[name].values for name in ("state_norm_cap", "grad_skip"))
    assert float(cap(np.array(jobs["cap_binding"]["state_norm_cap"]))) == pytest.approx(1.5)
    assert float(skip(np.array(jobs["wrong_neutral"]["grad_skip"]))) == pytest.approx(0.6)
    assert not jobs["cap_dormant"] and not jobs["foundational"]
    sidecars = {job.name: job.arguments["config"].sidecar for job in make_sidecar_jobs(TINY_SIDECAR)
                if "config" in job.arguments}  # fmt: skip
    # What is left between the two is where the caps start.
    assert replace(sidecars["cap_binding"], initial_mean={}) == sidecars["cap_dormant"]
    assert (
        sidecars["cap_dormant"].initial_std == {"clip": 0.01} and sidecars["cap_dormant"].attached
    )


def test_credits_and_signal_by_hand():
    terms = {"loss_change": np.array([[1.0, 2.0], [3.0, 5.0], [7.0, 11.0]])}
    np.testing.assert_array_equal(
        credits_of(terms, Credit("loss_change", 1, 1), False), [[3.0, 5.0], [7.0, 11.0]]
    )
    np.testing.assert_array_equal(
        credits_of(terms, Credit("loss_change", 1, 2), False), [[10.0, 16.0]]
    )
    np.testing.assert_array_equal(
        credits_of(terms, Credit("loss_change", 0, 2), True), [[4.0, 7.0], [10.0, 16.0]]
    )
    # Means 2 and 0, variances 2 and 8 over 2 batches: mean of 4 - 1 and 0 - 4 is negative.
    assert effect_size(np.array([[1.0, 2.0], [3.0, -2.0]])) == (
        0.0,
        pytest.approx(np.sqrt((1.0 + 4.0) / 2)),
    )
    assert effect_size(np.array([[3.0], [5.0]])) == (
        pytest.approx(np.sqrt(16.0 - 1.0)),
        pytest.approx(1.0),
    )
    assert steps_to_know(0.5, 10.0) == 1600.0
    with pytest.raises(ValueError, match="at least 2 batches"):
        effect_size(np.array([[3.0, 5.0]]))


@pytest.mark.parametrize("immediate", [False, True])
@pytest.mark.parametrize(("delay", "horizon"), [(0, 1), (0, 2), (1, 1), (1, 3)])
def test_credits_are_those_that_the_agent_learns_from(delay, horizon, immediate):
    rewards = np.random.default_rng(3).normal(size=(7, 2))
    stream = CreditStream(2, [immediate], delay, horizon, 1.0, "own", 0.9, 0.9, 5.0)
    alive = np.ones(2, dtype=bool)
    learned = [
        found.credits[:, 0] for row in rewards if (found := stream.push(row, alive)) is not None
    ]
    ours = credits_of({"loss_change": rewards}, Credit("loss_change", delay, horizon), immediate)
    np.testing.assert_allclose(ours, learned, rtol=1e-12)


def test_a_dial_that_moves_nothing_has_no_effect_and_a_rate_has_one():
    arguments = TINY_SIDECAR.env_arguments(
        preset="nano", num_steps=60, channels=[["lr", "layer"], ["dropout", "layer"]]
    )
    sizes = {"states": (6,), "layers": (1,), "num_batches": 4, "num_noise_steps": 4}
    rows, _ = measure_signal(
        "TrainLoop-Cell-v0", arguments, 5, sigma={"scale": 0.5, "skip": 0.05}, **sizes
    )
    found = {(row["channel"], row["reward"]): row for row in rows}
    for reward in CREDITS:
        row = found["dropout", reward]
        assert (
            row["effect"] == row["standard_error"] == 0.0
            and row["snr"] is row["steps_to_know"] is None
        )
    told = found["lr", "same-batch loss change"]
    assert (
        told["effect"] > 2.0 * told["standard_error"]
        and told["snr"] == told["effect"] / told["noise"]
    )
    assert all(row["cells"] == 1 and row["noise"] > 0.0 for row in rows)
    # Rows on the same batches share what a batch does to the loss.
    alone, together = (
        found["lr", name] for name in ("next-step loss change", "the same, less other rows'")
    )
    assert together["effect"] == alone["effect"] and together["noise"] < alone["noise"]
    with pytest.raises(
        ValueError,
        match=r"states must be ascending with 21 steps after each, in 60 steps; got \[50\]",
    ):
        measure_signal("TrainLoop-Cell-v0", arguments, 5, sigma={}, **(sizes | {"states": (50,)}))


def test_claims_are_judged_by_their_intervals():
    better = Claim("", "a", "b", "better", 0.42)
    assert verdict([0.4, 0.3, 0.5], better) == "yes"
    assert verdict([0.1, 0.05, 0.2], better) == "direction, not size"
    assert verdict([0.6, 0.5, 0.7], better) == "yes, more"
    assert verdict([0.1, -0.1, 0.3], better) == "refuted: no difference of that size"
    assert verdict([0.1, -0.1, 0.5], better) == "undecided"
    assert verdict([-0.2, -0.3, -0.1], better) == "no, the reverse"
    assert verdict([0.1], better) == verdict([], better) == "not measured"
    worse = Claim("", "a", "b", "worse", -0.14)
    assert (
        verdict([-0.15, -0.2, -0.1], worse) == "yes"
        and verdict([0.2, 0.1, 0.3], worse) == "no, the reverse"
    )
    neither = Claim("", "a", "b", "not better")
    assert (
        verdict([0.1, -0.1, 0.3], neither) == "undecided"
    )  # as much as 30 % better, for all that is known
    assert verdict([0.001, -0.003, 0.005], neither) == "yes, not by 1 %"
    assert verdict([-0.2, -0.3, -0.1], neither) == "yes, worse"
    assert verdict([0.2, 0.1, 0.3], neither) == "no, better"


def test_arms_are_paired_over_the_seeds_in_common_in_bits_and_in_perplexity():
    ours = in_both_units({"bpb": Sample((1, 2, 3), np.array([[1.0, 2.0, 9.0]]))})
    reference = in_both_units({"bpb": Sample((1, 2), np.array([[2.0, 4.0]]))})
    np.testing.assert_allclose(ours["bpb"].below(reference["bpb"]), [0.5, 0.5, 0.5])
    difference = ours["bpb"].below(reference["bpb"], relative=False)
    assert difference[0] == pytest.approx(1.5)
    found = ours["perplexity"].below(reference["perplexity"])
    assert found[0] == pytest.approx((0.5 + 0.75) / 2)
    assert Sample((1,), np.array([[1.0]])).below(reference["bpb"]) == [0.5]
    with pytest.raises(ValueError, match=r"must have seeds in common to be paired; got \(7,\)"):
        Sample((7,), np.array([[1.0]])).below(reference["bpb"])


def test_results_of_the_same_seeds_are_controllers_and_those_of_others_are_more_runs():
    def job(**bpbs):
        return {"rows": [_row(int(seed[1:]), value) for seed, value in bpbs.items()]}

    controllers = samples([job(s1=1.0, s2=2.0), job(s1=3.0, s2=4.0)], bits_per_byte)["bpb"]
    assert controllers.seeds == (1, 2) and controllers.values.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    joined = samples([job(s1=1.0), job(s2=2.0)], bits_per_byte)["bpb"]
    assert joined.seeds == (1, 2) and joined.values.tolist() == [[1.0, 2.0]]
    with pytest.raises(ValueError, match="controllers must have the same seeds to be paired"):
        samples([job(s1=1.0, s2=2.0), job(s2=1.0, s3=2.0)], bits_per_byte)


def _sidecar_row(seed, bpb, reason=None):
    curve = [8.0, bpb + 1.0, bpb]
    return {
        "seed": seed,
        "bpb": bpb,
        "bpb_curve": curve,
        "steps": [0, 1000, 3000],
        "divergence_reason": reason,
    }


def test_a_sidecars_scores_are_means_over_the_rows_of_a_seed():
    job = {
        "rows": [
            _sidecar_row(1, 2.0),
            _sidecar_row(1, 4.0),
            _sidecar_row(2, 3.0, "loss_above_limit"),
        ]
    }

    def found(numbers):
        sample = samples([job], numbers)["bpb"]
        return dict(zip(sample.seeds, sample.values[0].tolist(), strict=True))

    at_900 = partial(bits_at, step=900)
    assert found(bits_per_byte) == {1: 3.0, 2: 8.0}
    assert found(at_900) == {1: 4.0, 2: 4.0}  # it diverged later
    job["rows"][2]["steps"] = [0, 850, 850]
    assert found(at_900) == {1: 4.0, 2: 8.0}


def test_final_values_are_those_of_the_channel():
    extra = {
        "names": ["lr/layer.0", "lr/layer.1", "dropout/layer.0"],
        "final_mean": [[0.5, -0.5, 0.0]],
    }
    found = final_values(extra, "lr")
    assert found == pytest.approx({"mean": 1.0, "low": 0.1, "high": 10.0})
    assert final_values(extra, "beta1") is None


def _write_sidecar(folder, name, bpbs):
    extra = {
        "agent_ms": 2.0,
        "env_ms": 80.0,
        "advantage_rms": 0.0625,
        "evidence": 0.125,
        "names": ["lr/layer.0"],
        "final_mean": [[0.0]] * len(bpbs),
    }
    extra["trace"] = {"steps": [0, 50], "mean": [[[0.0]] * len(bpbs)] * 2, "sampled": []}
    rows = [_sidecar_row(seed, value) for seed, value in enumerate(bpbs)]
    write_result(folder / f"{name}.json", name, {}, rows, extra)


def test_the_sidecars_report_is_made_of_whatever_is_there(tmp_path):
    folder = tmp_path / "jobs"
    folder.mkdir()
    sidecar.REPORT.write(tmp_path)
    assert not (tmp_path / "README.md").exists()
    _write_sidecar(folder, "detached", [3.0, 3.2])
    sidecar.REPORT.write(tmp_path)
    assert "not measured" in (tmp_path / "README.md").read_text()
    _write_sidecar(folder, "foundational", [2.0, 2.2])
    _write_sidecar(folder, "layer_lr", [3.1, 3.1])
    sidecar.REPORT.write(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "+50.00 % [+50.00, +50.00]" in text  # a bit less is half the perplexity
    assert "| 80.0 | 2.0 | 0.0625 | 0.125 |" in text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["foundational"]["versus"]["detached"]["bpb"][0] == pytest.approx(
        (1 / 3 + 1 / 3.2) / 2
    )
    pictures = {file.name for file in tmp_path.glob("*.png")}
    assert pictures == {"figure3_foundational.png", "figure5_layer_lr.png"}
    assert all(name in text for name in pictures)


@pytest.mark.slow
def test_the_sidecars_experiments_run_resume_and_report(tmp_path):
    config = replace(TINY_SIDECAR, out=tmp_path / "results", runs=tmp_path / "runs")
    jobs = make_sidecar_jobs(config)
    assert late_jobs(config) == []
    run_jobs(select_jobs(jobs, ("detached",)), config.out / "jobs", 1)
    run_jobs(jobs, config.out / "jobs", 2)
    run_jobs(late_jobs(config), config.out / "jobs", 1)
    sidecar.REPORT.write(config.out)
    summary = json.loads((config.out / "summary.json").read_text())
    assert set(summary) == {arm.name for arm in ARMS}
    forensic = json.loads((config.out / "jobs" / "forensics.json").read_text())
    assert len(forensic["rows"]) == 2 and len(forensic["rows"][0]["tensors"]) == 77
    assert len(list(config.out.glob("*.png"))) == 10


def test_a_page_leaves_out_paragraphs_and_sections_without_results():
    template = (
        "# Title\n\nWords.\n\n## One\n\n{{there a b}}\nCaption {{made}}.\n\nWords of one.\n\n"
        "## Two\n\nWords of two.\n\n{{missing}}\nCaption {{made}}.\n\n### Below\n\n{{missing}}\n\n"
        "## Three\n\n{{missing}}\n\n### Below three\n\n{{made}}\n"
    )
    parts = {
        "there": lambda first, second: f"[{first}, {second}]",
        "missing": lambda: "",
        "made": lambda: "by hand",
    }
    page = report.render(template, parts)
    assert page == (
        "# Title\n\nWords.\n\n## One\n\n[a, b]\nCaption by hand.\n\nWords of one.\n\n"
        "## Three\n\n### Below three\n\nby hand\n"
    )
    with pytest.raises(ValueError, match="a template calls 'other'; expected one of"):
        report.render("{{other}}", parts)
