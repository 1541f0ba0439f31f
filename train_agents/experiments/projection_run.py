"""Runs of the projection experiment: an arm, the best constant strength, and a learned strength.

An arm is GRPO runs of several seeds, stacked as rows, with a panel that is held constant. At
regular intervals the runs report true numbers on held-out problems, and the means of the gauges
over all updates since the last report. The records are saved with the plant's snapshot. An
interrupted arm goes on at its last report, bitwise as if it had never stopped, because a plant's
draws are functions of seed and step.

JEL's agent learns a strength: it is meta-trained on shorter runs, then deployed, frozen and
deterministic, on the evaluation seeds. Its reward is that of the id: the pass rate on the probe
less the rate that the weak detector flags. The best constant is chosen by the same reward, on
tuning seeds. So neither has seen the true rates that both are reported by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.jel import JELAgentConfig
from hpenv.arrays import FloatArray
from hpenv.benchmark.environments import make_population
from hpenv.benchmark.evaluate import run_episodes
from hpenv.benchmark.progress import progress
from hpenv.benchmark.results import Rows
from hpenv.control.channels import CHANNELS
from hpenv.optim.schedules import Cosine
from hpenv.plant import snapshots
from hpenv.plant.protocol import DIVERGENCE_REASONS, Snapshot
from hpenv.plant.seeds import first_run_seed
from hpenv.policies import Policy
from hpenv.posttraining.coefficients import total_norm
from hpenv.posttraining.grading.grader import Grader
from hpenv.posttraining.grading.shared_sandbox import SharedSandbox
from hpenv.posttraining.measurements import GAUGE_NAMES
from hpenv.posttraining.plant import GRPOPlant
from hpenv.posttraining.projection.rules import coordinates, erase_direction
from hpenv.posttraining.students.registry import student
from train_agents.experiments.contrasts import grpo_config
from train_agents.experiments.meta_training import meta_train
from train_agents.experiments.projection_arms import PANEL

ENV = "TrainLoop-GRPOProjection-v0"
#: True rates of the rollouts that are recorded. Those of a single loophole are not, because an
#: update may have no such prompt.
TRAINED = ("hack", "correct", "used_loophole")
#: Means over all updates since the last report; true rates of the rollouts under names with
#: `train_`.
MEANS = (*GAUGE_NAMES, "gradient_norm", *(f"train_{name}" for name in TRAINED))
#: Replaces a number that overflowed, in JSON (a run that diverged may be infinitely far from where
#: it began).
LARGEST = 1e6
#: Updates of warmup before the cosine (the paper's amendment b).
WARMUP_UPDATES = 10
#: Constant strengths that are tried; 0 is vanilla.
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
#: Of the controller's Adam: with the paper's 3e-4 a dozen updates move nothing.
POLICY_RATE = 2e-3
#: What is recorded at a report: `step`, `report` (deployed), `quarantine_on` (with the quarantine,
#: of an arm that routes), `probe_pass`, and, but for the first, `means` and `module_cos` since the
#: last report. `module_cos` is 0 if there was no update. Numbers are lists, one per row.
Record = dict[str, Any]


def schedule(num_updates: int) -> Cosine:
    """Returns the learning rate schedule of an arm.

    It is that of the id, so that its episodes and the arms are the same runs.
    """
    return Cosine(num_updates, min(WARMUP_UPDATES, num_updates // 2))


def run_arm(
    grpo: Mapping[str, Any], positions: Mapping[str, float], seeds: Sequence[int], num_updates: int,
    report_interval: int, folder: str, cache: str, erases: bool = False,
    grader: Grader | None = None,
) -> Rows:  # fmt: skip
    """Trains an arm to its last update, from its checkpoint if there is one.

    Args:
        grpo: arguments of GRPOConfig.
        positions: channel of PANEL -> position that its cell is held at.
        seeds: one row each, as an env's.
        num_updates: of a run.
        report_interval: updates between reports.
        folder: where its checkpoint is.
        cache: file of verdicts, shared with other arms.
        erases: also report on the final coefficients without their component along the direction.
            Nothing is trained for that.
        grader: None for one with this process's sandbox.

    Returns:
        A dictionary per run: `seed`, `corpus`, `divergence_reason`, `steps`, and curves. `reports`,
        `quarantine_on` and `probe_pass` have one number per step. `means` and `module_cos` have one
        less. Then `along`, `quarantine_ratio` of an arm that routes (its length / the
        coefficients'), and `erased` (a report's numbers) where asked for. The extra is empty.

    Raises:
        ValueError: the checkpoint is of other runs.
    """
    grader = shared_grader(cache) if grader is None else grader
    config = grpo_config(grpo, lr_schedule=schedule(num_updates))
    plant = GRPOPlant(config, len(seeds), PANEL, student=student(config.student), grader=grader)
    about = {"seeds": list(seeds), "positions": dict(positions), "interval": report_interval}
    file = Path(folder) / "checkpoint"
    records = _resume(plant, file, about) if file.exists() else _begin(plant, seeds, positions)

    step = records[-1]["step"]
    with progress(num_updates, Path(folder).name, completed=step) as advance:
        while step < num_updates:
            _save(plant, file, about, records)
            taken = min(report_interval, num_updates - step)
            means = _train(plant, taken, records[-1].get("means", {}))
            step += taken
            records.append(_report(plant, step) | means)
            advance(taken)
    _save(plant, file, about, records)
    return _rows(plant, seeds, records, erases), {}


def _begin(plant: GRPOPlant, seeds: Sequence[int], positions: Mapping[str, float]) -> list[Record]:
    plant.set_measured_groups(())
    plant.reset([first_run_seed(seed) for seed in seeds])
    row = [positions.get(name, 0.0) for name in plant.panel.names]
    plant.panel.move(np.array([row] * plant.num_rows), np.ones(plant.num_rows, dtype=bool))
    return [_report(plant, 0)]


def _train(plant: GRPOPlant, num_updates: int, last: Mapping[str, list[float]]) -> Record:
    """Trains for some updates, and returns their means.

    A row that has diverged repeats its last means.
    """
    num_rows, names = plant.num_rows, (*GAUGE_NAMES, "gradient_norm", *TRAINED)
    sums, moves = np.zeros((num_rows, len(MEANS) + len(plant.names))), np.zeros((num_rows, 1))
    for _ in range(num_updates):
        before = plant.steps.copy()
        window = plant.advance(np.ones(num_rows, dtype=np.int64))
        moved = plant.steps > before
        gauges = np.stack([window[name] for name in names], 1)
        sums[moved] += np.hstack([gauges, plant.module_cos.double().numpy()])[moved]
        moves[moved] += 1.0

    means, cosines = np.split(sums / np.maximum(moves, 1.0), [len(MEANS)], 1)
    if last:
        means = np.where(moves > 0, means, np.array([last[name] for name in MEANS]).T)
    return {
        "means": _finite_lists(dict(zip(MEANS, means.T, strict=True))),
        "module_cos": _finite_lists(dict(zip(plant.names, cosines.T, strict=True))),
    }


def _report(plant: GRPOPlant, step: int) -> Record:
    """Measures what is true of the runs."""
    plant.set_measured_groups(("probe",))
    probe_pass = 1.0 - plant.advance(np.zeros(plant.num_rows, dtype=np.int64))["probe_loss"]
    plant.set_measured_groups(())
    record = {"step": step, "report": _finite_lists(plant.report())}
    record["probe_pass"] = probe_pass.tolist()
    if plant.config.route:
        record["quarantine_on"] = _finite_lists(plant.report(quarantine=True))
    return record


def _save(plant: GRPOPlant, file: Path, about: Record, records: list[Record]) -> None:
    found = plant.snapshot()
    metadata = found.metadata | {"about": about, "records": records}
    snapshots.save(file, Snapshot(found.tensors, metadata))


def _resume(plant: GRPOPlant, file: Path, about: Record) -> list[Record]:
    plant.set_measured_groups(())
    found = snapshots.load(file)
    if found.metadata["about"] != about:
        raise ValueError(
            f"{file} must be of {about}; got {found.metadata['about']}; "
            "move it away, or give another --runs"
        )
    plant.restore(found)
    return list(found.metadata["records"])


def _rows(
    plant: GRPOPlant, seeds: Sequence[int], records: Sequence[Record], erases: bool
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for row, seed in enumerate(seeds):
        reason = plant.divergence[row]
        entry = {
            "seed": seed,
            "corpus": plant.corpus_digest,
            "divergence_reason": DIVERGENCE_REASONS[reason] if reason else None,
            "steps": [record["step"] for record in records],
            "probe_pass": [record["probe_pass"][row] for record in records],
            "reports": _curves(records, "report", row),
            "means": _curves(records[1:], "means", row),
            "module_cos": _curves(records[1:], "module_cos", row),
        }
        if plant.config.route:
            entry["quarantine_on"] = _curves(records, "quarantine_on", row)
        rows.append(entry)

    ends = {"along": along(plant)}
    if plant.config.route:
        length = np.maximum(total_norm(plant.coefficients.values), 1e-12)
        ends["quarantine_ratio"] = total_norm(plant.quarantine.values) / length
    for name, values in _finite_lists(ends).items():
        for entry, value in zip(rows, values, strict=True):
            entry[name] = value

    if erases:
        plant.coefficients.values = erase_direction(
            plant.coefficients.values, plant.intervention.direction
        )
        report = _finite_lists(plant.report())
        for row, entry in enumerate(rows):
            entry["erased"] = {name: values[row] for name, values in report.items()}
    return rows


def along(plant: GRPOPlant) -> FloatArray:
    """Returns the mean cosine of each run's coefficients with its direction, (N,).

    The mean is over the modules and their axes.
    """
    units = {
        name: torch.nn.functional.normalize(value, dim=1)
        for name, value in plant.coefficients.values.items()
    }
    cosines = coordinates(units, plant.intervention.direction)
    return torch.cat(list(cosines.values()), 1).double().mean(1).numpy()


def _finite_lists(values: Mapping[str, FloatArray]) -> dict[str, list[float]]:
    lists = {}
    for name, value in values.items():
        finite = np.nan_to_num(value, nan=LARGEST, posinf=LARGEST, neginf=-LARGEST)
        lists[name] = finite.tolist()
    return lists


def _curves(records: Sequence[Mapping[str, Any]], key: str, row: int) -> dict[str, list[float]]:
    """Returns name -> a row's numbers over the records."""
    names = records[0][key] if records else ()
    return {name: [record[key][name][row] for record in records] for name in names}


def shared_grader(cache: str) -> Grader:
    """Returns a grader with this process's sandbox.

    Its verdicts are in a file that other processes may share.
    """
    Path(cache).parent.mkdir(parents=True, exist_ok=True)
    return Grader(SharedSandbox(), cache)


def best_constant(
    grpo: Mapping[str, Any], tuning_seeds: Sequence[int], evaluation_seeds: Sequence[int],
    num_updates: int, report_interval: int, folder: str, cache: str,
    strengths: Sequence[float] = STRENGTHS,
) -> Rows:  # fmt: skip
    """Chooses the constant strength with the highest reward, and runs it on the evaluation seeds.

    Returns:
        Rows as `run_arm` has them, and `chosen`, `table` (of each strength the mean `pay`, and the
        true `pass` and `hack` on the tuning seeds, which chose nothing), `updates_spent` on the
        choice.
    """

    def run(strength: float, seeds: Sequence[int], name: str) -> list[dict[str, Any]]:
        channel = "projection_strength"
        positions = {channel: CHANNELS[channel].position(strength)} if strength else {}
        sizes, place = (num_updates, report_interval), f"{folder}/{name}"
        return run_arm(grpo, positions, seeds, *sizes, place, cache)[0]

    table = []
    for strength in strengths:
        rows = run(strength, tuning_seeds, f"{strength:g}")
        entry = {"strength": strength, "pay": float(np.mean([pay(row) for row in rows]))}
        for key in ("pass", "hack"):
            entry[key] = float(np.mean([row["reports"][key][-1] for row in rows]))
        table.append(entry)

    chosen = max(table, key=lambda entry: entry["pay"])["strength"]
    spent = len(strengths) * len(tuning_seeds) * num_updates
    rows = run(chosen, evaluation_seeds, "chosen")
    return rows, {"chosen": chosen, "table": table, "updates_spent": spent}


def pay(row: Mapping[str, Any]) -> float:
    """Returns a run's mean reward per decision: passes of the probe less flags. 1 less if diverged.

    The id subtracts that 1 once and not per decision. Here it prevents the choice of a strength at
    which runs diverge.
    """
    earned = np.array(row["probe_pass"][1:]) - np.array(row["means"]["flagged"])
    return float(earned.mean()) - (row["divergence_reason"] is not None)


def controller(
    env_arguments: Mapping[str, Any], meta_steps: int, num_meta_updates: int, num_episodes: int,
    seed: int, evaluation_seeds: Sequence[int], num_reports: int, folder: str,
) -> Rows:  # fmt: skip
    """Meta-trains one controller, then deploys it on every evaluation seed.

    Args:
        env_arguments: of a deployed run.
        meta_steps: updates of a run of meta-training.
        num_meta_updates: updates of the controller.
        num_episodes: runs per update of the controller.
        seed: of the controller. The runs' seeds are 32-bit words drawn from it.
        evaluation_seeds: one deployed run each.
        num_reports: of a deployed run, evenly spaced as far as its decisions allow, in addition to
            the report before the first update.
        folder: where the controller is.

    Returns:
        Rows as `run_arm` has them, without `means`, but with `strengths` (after each decision), and
        `updates_spent` on meta-training, `training` (metrics of each update of the controller).
    """
    meta = dict(env_arguments) | {"num_steps": meta_steps}
    agent = JELAgentConfig(learning_rate=POLICY_RATE)
    sizes = {"num_updates": num_meta_updates, "episodes_per_update": num_episodes}
    sizes |= {"num_envs": num_episodes, "seed": seed}
    policy, training = meta_train(Path(folder), ENV, meta, agent="jel", jel=agent, **sizes)
    rows = deploy(policy, env_arguments, evaluation_seeds, num_reports)
    spent = num_meta_updates * num_episodes * meta_steps
    return rows, {"updates_spent": spent, "training": training}


def deploy(
    policy: Policy, env_arguments: Mapping[str, Any], seeds: Sequence[int], num_reports: int
) -> list[dict[str, Any]]:
    """Runs under the mean of a policy. See `controller`."""
    env = make_population(ENV, len(seeds), env_arguments)
    env.reset(seed=list(seeds))
    due = np.linspace(0, env.num_decisions, num_reports + 1)[1:].round()
    reports, decisions = {0: env.plant.report()}, count(1)

    def note(_: float) -> None:
        decision = next(decisions)
        if decision in due:
            reports[decision] = env.plant.report()

    episodes = run_episodes(policy, env, list(seeds), curve=True, on_progress=note)
    env.close()

    rows = []
    for n, episode in enumerate(episodes):
        entry = {key: episode[key] for key in ("seed", "corpus", "divergence_reason")}
        entry["steps"] = [episode["steps"][decision] for decision in reports]
        entry["reports"] = {
            name: [float(report[name][n]) for report in reports.values()] for name in reports[0]
        }
        rows.append(entry | {"strengths": episode["panel"]["projection_strength"]})
    return rows
