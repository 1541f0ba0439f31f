"""Parts of `results/jel/template.md`: tables and figures of the JEL experiment."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from train_agents import figure_style, figures
from train_agents.experiments import report as engine
from train_agents.experiments.report import Cell, Data, number
from train_agents.experiments.samples import Result

REFERENCE = "baseline_constant_warmdown"
#: Methods whose dynamics Figure 2 shows, the first of each line that has a result.
DYNAMICS = (
    (REFERENCE,),
    ("tuned_schedule_free_adamw", "sweep_schedule_free_sgd"),
    ("tuned_uniform", "sweep_constant"),
    ("tuned_hand_tuned", "baseline_hand_tuned"),
    ("search_cma",),
    ("paper",),
    ("ours",),
    ("nanochat",),
)
#: Reference of differences -> patterns of its arms. The first with a result counts, and of several
#: arms the one with the lowest probe loss on the tuning seeds.
REFERENCES = {
    "base": (REFERENCE,),
    "constant": ("baseline_constant",),
    "hand_tuned": ("tuned_hand_tuned", "baseline_hand_tuned"),
    "nanochat": ("tuned_nanochat_groups", "baseline_nanochat"),
    "schedule_free": ("tuned_schedule_free_*", "sweep_schedule_free_*"),
}


def _references(data: Data) -> dict[str, str]:
    """Returns the arm of each reference that has a result."""
    found = {}
    for key, patterns in REFERENCES.items():
        some = next(filter(None, (fnmatch.filter(data.arms, each) for each in patterns)), None)
        if some:
            found[key] = min(some, key=lambda arm: _lowest_loss(data, arm))
    return found


def _lowest_loss(data: Data, arm: str) -> float:
    """Returns the lowest probe loss on the tuning seeds, which chose [nats per token]."""
    table = data.extra(arm).get("table", [{"score": np.inf}])
    return min(float(entry.get("probe_loss", entry.get("score"))) for entry in table)


def summarize(data: Data) -> dict[str, dict[str, Any]]:
    """Returns each method's mean, interval, controllers, differences and runs spent."""
    references, found = _references(data), {}
    for arm, scores in data.arms.items():
        bpb = scores["bpb"]
        losses = [row["train_loss"] for row in data.rows(arm) if row["train_loss"] is not None]
        found[arm] = {
            "bpb": bpb.mean,
            "interval": bpb.estimate()[1:] or None,
            "controllers": bpb.values.mean(1).tolist(),
            "train_loss": float(np.mean(losses)) if losses else None,
            "diverged": data.divergences(arm),
            "seeds": len(bpb.seeds),
            "run_equivalents": _run_equivalents(data.members(arm)[0]),
            "versus": {key: data.below(arm, other) for key, other in references.items()},
        }
    return found


def _run_equivalents(result: Result) -> float | None:
    """Returns the tokens spent before deployment, in those of one deployed run, or None."""
    configuration = result["configuration"]
    if "meta_kwargs" not in configuration:
        return result["extra"].get("runs_spent")
    meta, deployed = configuration["meta_kwargs"], configuration["deployment_kwargs"]
    episodes = configuration.get("num_episodes", 8 * configuration.get("num_updates", 0))
    return episodes * meta["batch_tokens"] / deployed["batch_tokens"]


def _controllers(data: Data) -> tuple[str, Cell]:
    """Returns the column of the range over controllers and their number, empty for one."""

    def cell(arm: str) -> str:
        means = data.arms[arm]["bpb"].values.mean(1)
        text = f"{means.min():.3f} to {means.max():.3f} ({len(means)})"
        return text if len(means) > 1 else ""

    return "controllers (number)", cell


def _main(data: Data) -> list[str]:
    """Returns all methods but the ablations."""
    return [arm for arm in data.arms if arm not in data.of_group("ablation")]


def main_table(data: Data) -> str:
    """Returns the paper's Table 1, with all baselines, best last."""
    references, summary = _references(data), summarize(data)

    def below(key: str) -> Cell:
        other, alone = references.get(key, ""), " (not claimed)"
        return lambda arm: engine.interval_text(data.below(arm, other), alone=alone)

    spent = "made with [runs, by tokens]"
    columns: engine.Columns = [
        ("method", data.label),
        engine.bpb_column(data),
        _controllers(data),
        ("train loss [nats]", lambda arm: number(summary[arm]["train_loss"], ".3f")),
        ("below conservative base", below("base")),
        ("below its constant rate", below("constant")),
        ("below best schedule-free", below("schedule_free")),
        ("below hand-tuned", below("hand_tuned")),
        ("below nanochat's run", below("nanochat")),
        (spent, lambda arm: number(summary[arm]["run_equivalents"], ".0f")),
    ]
    return engine.table(sorted(_main(data), key=lambda arm: -summary[arm]["bpb"]), columns)


def sweep_tables(data: Data) -> str:
    """Returns what each sweep and search tried, with the probe loss that chose."""
    names = [name for name in data.known if name.startswith(("sweep_", "tuned_"))]
    done = [name for name in names if name in data.jobs]
    return "\n\n".join(f"### {data.label(n)}\n\n{_sweep_table(data.jobs[n])}" for n in done)


def _sweep_table(result: Result) -> str:
    extra = result["extra"]
    if "interior" not in extra:
        return engine.tried_table(result)

    def value(name: str) -> Cell:
        return lambda entry: f"{entry['point'][name]:.4g}"

    columns = [(name, value(name)) for name in extra["chosen"]]
    columns.append(("probe loss [nats]", "{score:.4f}".format_map))
    tried = engine.table(sorted(extra["table"], key=lambda entry: entry["score"]), columns)
    sides = "A lower and a higher value of every coordinate are no better."
    return f"{extra['runs_spent']} runs. {sides}\n\n{tried}"


def ablation_table(data: Data) -> str:
    """Returns the ablations of section 4.4 next to the paper's arm."""

    def lines(arm: str) -> Sequence[Mapping[str, float]]:
        return data.extra(arm).get("training", [])  # of the arm's first controller

    def entropy(index: int) -> Cell:
        def cell(arm: str) -> str:
            found = lines(arm)[index:][:1]  # none of a controller with fewer updates
            return number(found[0].get("train/entropy_per_cell") if found else None, ".2f")

        return cell

    def late_return(arm: str) -> str:
        return f"{np.mean([line['rollout/ep_rew_mean'] for line in lines(arm)[-5:]]):.3f}"

    columns: engine.Columns = [
        ("arm", lambda arm: arm.replace("_", " ")),
        engine.bpb_column(data),
        _controllers(data),
        ("updates", lambda arm: str(len(lines(arm)))),
        ("meta-training return, last 5 updates [nats]", late_return),
        ("entropy per cell after update 1", entropy(0)),
        ("after 10", entropy(9)),
        ("at the end [nats]", entropy(-1)),
    ]
    names = [arm for arm in data.of_group("ablation") if lines(arm)]
    return engine.table([n for n in ("paper", *names) if n in data.arms] if names else [], columns)


def cost_table(data: Data) -> str:
    """Returns section 4.3, measured: meta-training in runs, and the cost of a decision."""
    file = data.folder.parent / "benchmarks.json"
    if not file.exists():
        return ""
    benchmarks, rows = json.loads(file.read_text()), []
    for threads in ("1 thread", "2 threads"):
        for ratio in (4, 16, 128):
            found = benchmarks[f"run_equivalents, {threads}"][f"ratio {ratio}"]
            title = f"400 episodes in deployed runs, deployment at {ratio} x the tokens, {threads}"
            rows.append((title, "{median:.1f} [{min:.1f}, {max:.1f}]".format(**found)))
        share = benchmarks[f"controller_overhead, {threads}"]["share of a window"]["median"]
        rows.append((f"controller's share of a deployed window, {threads}", f"{100 * share:.3f} %"))
    title = "quantity (median [min, max] of alternating rounds)"
    return engine.table(rows, [(title, lambda row: row[0]), ("measured", lambda row: row[1])])


def dynamics(data: Data) -> dict[str, figures.Curve]:
    """Returns the probe loss over training (Figure 2)."""
    curves = {}
    for names in DYNAMICS:
        name = next((name for name in names if name in data.arms), "")
        rows = [row for row in data.rows(name) if row["divergence_reason"] is None]
        if rows:
            values = np.array([row["probe_curve"] for row in rows]) / np.log(2.0)
            curves[data.label(name)] = (np.array(rows[0]["steps"]), values)
    return curves


def actions(arm: str, data: Data) -> dict[str, Any]:
    """Returns the actions of an arm's controllers, and those tried in meta-training (Figure 3)."""
    members = data.members(arm)
    if not members:
        return {}
    rows = [result["rows"][0] for result in members]
    tried = [result["extra"]["actions"] for result in members]
    found: dict[str, Any] = {"steps": np.array(rows[0]["steps"]), "names": list(rows[0]["panel"])}
    found["schedules"] = [np.stack(list(row["panel"].values()), 1) for row in rows]
    for key in ("low", "median", "high"):
        found[key] = np.exp(np.log(100.0) * np.mean([each[key] for each in tried], 0))
    return found


def learning(key: str, is_ablation: bool, data: Data) -> dict[str, figures.Curve]:
    """Returns a metric of every update of controllers, by arm."""
    curves = {}
    full = data.of_group("nanochat")  # of other runs, whose returns have another level
    main = [arm for arm in _main(data) if arm not in full]
    for arm in data.of_group("ablation") if is_ablation else main:
        trainings = [result["extra"].get("training", []) for result in data.members(arm)]
        histories = [[line.get(key) for line in lines] for lines in trainings]
        if histories[0] and None not in histories[0]:
            updates = np.arange(1, len(histories[0]) + 1)
            curves[data.label(arm)] = (updates, np.array(histories, float))
    return curves


def _learning(key: str, ylabel: str, *, is_ablation: bool = False) -> engine.Figure:
    labels: dict[str, Any] = {"xlabel": "update of the controller", "ylabel": ylabel}
    return partial(learning, key, is_ablation), partial(
        figures.curves, band="controllers", **labels
    )


def _draw_actions(path: figure_style.File, found: Mapping[str, Any]) -> None:
    figures.controller_actions(path, **found)


def _seeds(data: Data) -> str:
    seeds = data.arms[REFERENCE]["bpb"].seeds
    return f"{seeds[0]} to {seeds[-1]}"


_RETURN = ("rollout/ep_rew_mean", "return of an episode [nats]")
_ENTROPY = ("train/entropy_per_cell", "entropy per cell [nats]")
_BPB = "held-out bits per byte"
FIGURES: dict[str, engine.Figure] = {
    "comparison": (
        lambda data: engine.bpb_bars(data, _main(data)),
        partial(figures.comparison_bars, xlabel=_BPB),
    ),
    "figure2_dynamics": (
        dynamics,
        partial(figures.curves, xlabel="training step", ylabel="probe loss [bits per byte]"),
    ),
    "figure3_actions_paper": (partial(actions, "paper"), _draw_actions),
    "figure3_actions_ours": (partial(actions, "ours"), _draw_actions),
    "figure3_actions_nanochat": (partial(actions, "nanochat"), _draw_actions),
    "learning_curves": _learning(*_RETURN),
    "entropy": _learning(*_ENTROPY),
    "learning_curves_ablations": _learning(*_RETURN, is_ablation=True),
    "entropy_ablations": _learning(*_ENTROPY, is_ablation=True),
}
PARTS: dict[str, engine.Part] = {
    "seeds": _seeds,
    "main_table": main_table,
    "sweeps": sweep_tables,
    "ablation_table": ablation_table,
    "cost_table": cost_table,
}
