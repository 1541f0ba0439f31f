"""Tables and figures of the JEL experiment, as parts of `results/jel/template.md`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from hpenv.benchmark.facts import ROOT
from hpenv.benchmark.results import markdown_table
from hpenv.benchmark.statistics import controllers_interval, mean_interval, paired_relative_interval
from train_agents import figures
from train_agents.experiments import report as engine
from train_agents.experiments.report import Cell, Column, Result, Summary, ends, percent

TEMPLATE = ROOT / "results/jel/template.md"
LABELS = {
    "baseline_constant_warmdown": "conservative base, controller off (the paper's suboptimal)",
    "baseline_constant": "conservative base, constant rate",
    "baseline_cosine": "conservative base, cosine",
    "baseline_wsd": "conservative base, warmup-stable-decay",
    "baseline_cosine_tuned": "hand-tuned rates, cosine",
    "baseline_wsd_tuned": "hand-tuned rates, warmup-stable-decay",
    "baseline_nanochat": (
        "nanochat's rates, schedule and Muon, untuned, without its rule for the batch size"
    ),
    "baseline_hand_tuned": "hand-tuned per-group rates, warmdown",
    "sweep_constant": "best constant multiplier of a sweep",
    "tuned_uniform": "one rate and decay, tuned, warmdown",
    "tuned_hand_tuned": "per-group rates, tuned, warmdown",
    "tuned_cosine": "per-group rates, tuned, cosine",
    "tuned_wsd": "per-group rates, tuned, warmup-stable-decay",
    "tuned_nanochat": "nanochat's rates times a tuned factor, and its decay tuned",
    "tuned_schedule_free_sgd": "schedule-free (SGD reading), tuned",
    "tuned_schedule_free_adamw": "schedule-free (AdamW reading), tuned",
    "sweep_schedule_free_sgd": "best of the paper's 8 schedule-free points (SGD reading)",
    "sweep_schedule_free_adamw": "best of the paper's 8 schedule-free points (AdamW reading)",
    "search_cma": "CMA-ES over schedules",
    "search_random_schedule": "random search over schedules",
    "paper": "JEL, the paper's hyperparameters",
    "ours": "JEL, ours (per-optimizer actions, grouped seeds, policy rate 2e-3)",
}
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
)
#: Reference of differences -> its jobs, of which the first with a result counts. The reference of
#: schedule-free is chosen in `summarize`.
REFERENCES = {
    "base": (REFERENCE,),
    "constant": ("baseline_constant",),
    "hand_tuned": ("tuned_hand_tuned", "baseline_hand_tuned"),
}
#: Metric of a controller's training -> label of its figure.
LEARNING = {
    "rollout/ep_rew_mean": "return of an episode [nats]",
    "train/entropy_per_cell": "entropy per cell [nats]",
}


def scores(result: Result) -> np.ndarray:
    """Returns the held-out bits per byte of each seed. A diverged run has 8, a uniform guess."""
    rows = result["rows"]
    lost = [row["bpb"] is None or row["divergence_reason"] for row in rows]
    return np.array([8.0 if gone else row["bpb"] for row, gone in zip(rows, lost, strict=True)])


def matrix(members: Sequence[Result]) -> np.ndarray:
    """Returns the held-out bits per byte of an arm, (controllers, seeds)."""
    return np.stack([scores(result) for result in members])


def summarize(results: Mapping[str, Result]) -> dict[str, dict[str, Any]]:
    """Returns each method's mean, interval, controllers, differences and runs spent.

    Raises:
        ValueError: the jobs were evaluated on different seeds.
    """
    arms = engine.by_arm(results)
    seeds = {tuple(row["seed"] for row in result["rows"]) for result in results.values()}
    if len(seeds) != 1:
        raise ValueError(
            f"all jobs must have the same evaluation seeds to be paired; got {sorted(seeds)}"
        )

    done = {key: [name for name in names if name in arms] for key, names in REFERENCES.items()}
    references = {key: scores(arms[names[0]][0]) for key, names in done.items() if names}
    free = [name for name in arms if name.startswith("tuned_schedule_free")]
    free = free or [name for name in arms if name.startswith("sweep_schedule_free")]
    if free:
        best = min(free, key=lambda name: _lowest_loss(arms[name][0]))
        references["schedule_free"] = scores(arms[best][0])
    return {name: _entry(members, references) for name, members in arms.items()}


def _entry(members: Sequence[Result], references: Mapping[str, np.ndarray]) -> dict[str, Any]:
    values = matrix(members)
    found = controllers_interval(values) if len(members) > 1 else mean_interval(values[0])
    rows = _all_rows(members)
    final = [row["train_loss"] for row in rows if row["train_loss"] is not None]
    return {
        "bpb": float(values.mean()),
        "interval": None if found is None else [found.low, found.high],
        "controllers": [float(value) for value in values.mean(1)],
        "train_loss": float(np.mean(final)) if final else None,
        "diverged": int(sum(row["divergence_reason"] is not None for row in rows)),
        "seeds": values.shape[1],
        "run_equivalents": _run_equivalents(members),
        "versus": {key: _below(values, reference) for key, reference in references.items()},
    }


def _all_rows(members: Sequence[Result]) -> list[dict[str, Any]]:
    return list(chain.from_iterable(result["rows"] for result in members))


def _lowest_loss(result: Result) -> float:
    """Returns the lowest probe loss on the tuning seeds, which chose [nats per token]."""
    table = result["extra"]["table"]
    return min(float(entry.get("probe_loss", entry.get("score"))) for entry in table)


def _run_equivalents(members: Sequence[Result]) -> float | None:
    """Returns the tokens spent before deployment, in those of one deployed run, or None."""
    configuration = members[0]["configuration"]
    if "meta_kwargs" not in configuration:
        return members[0]["extra"].get("runs_spent")
    meta, deployed = configuration["meta_kwargs"], configuration["deployment_kwargs"]
    episodes = configuration.get("num_episodes", 8 * configuration.get("num_updates", 0))
    return episodes * meta["batch_tokens"] / deployed["batch_tokens"]


def _below(values: np.ndarray, reference: np.ndarray) -> list[float]:
    """Returns how far a method lies below a reference, paired by seed: mean and 95 % interval [1].

    The interval of several controllers is over their means, and holds for these runs of the
    reference. Of too few controllers the mean stands alone. That of a single method is over seeds.

    Args:
        values: held-out bits per byte, (controllers, seeds).
        reference: those of the reference, (seeds,).
    """
    if len(values) == 1:
        return [float(value) for value in paired_relative_interval(values[0], reference)]
    below = (reference - values) / reference
    found = controllers_interval(below)
    return [float(below.mean())] if found is None else [float(value) for value in found]


def label(name: str) -> str:
    """Returns the name of a method in tables and figures."""
    return LABELS.get(name, name.removeprefix("baseline_").replace("_", " "))


def _range(means: Sequence[float]) -> str:
    """Returns the range over controllers and their number, empty for a single one."""
    return f"{min(means):.3f} to {max(means):.3f} ({len(means)})" if len(means) > 1 else ""


def _main_methods(summary: Summary) -> list[str]:
    return [name for name in summary if name in LABELS or name.startswith("baseline_")]


def main_table(summary: Summary) -> str:
    """Returns the paper's Table 1, with all baselines, best last."""

    def below(key: str) -> Cell:
        return lambda name: percent(summary[name]["versus"].get(key), alone=" (not claimed)")

    columns = [
        Column("method", label),
        engine.bpb_column(summary),
        Column("controllers (number)", lambda name: _range(summary[name]["controllers"])),
        Column("train loss [nats]", engine.number_cell(summary, "train_loss", ".3f")),
        Column("below conservative base", below("base")),
        Column("below its constant rate", below("constant")),
        Column("below best schedule-free", below("schedule_free")),
        Column("below hand-tuned", below("hand_tuned")),
        Column(
            "made with [runs, by tokens]", engine.number_cell(summary, "run_equivalents", ".0f")
        ),
    ]
    names = sorted(_main_methods(summary), key=lambda name: -summary[name]["bpb"])
    return engine.table(names, columns)


def sweep_table(result: Result) -> str:
    """Returns what a sweep or a search tried, with the probe loss that chose."""
    extra = result["extra"]
    if "interior" not in extra:
        return engine.tried_table(result, engine.SWEPT)

    names, rows = list(extra["chosen"]), []
    for entry in sorted(extra["table"], key=lambda entry: entry["score"]):
        point = [f"{entry['point'][name]:.4g}" for name in names]
        rows.append([*point, f"{entry['score']:.4f}"])
    sides = "A lower and a higher value of every coordinate are no better."
    tried = markdown_table([*names, "probe loss [nats]"], rows)
    return f"{extra['runs_spent']} runs. {sides}\n\n{tried}"


def ablation_table(arms: Mapping[str, Sequence[Result]]) -> str:
    """Returns the ablations of section 4.4 next to the paper's arm."""
    names = [name for name in arms if name not in LABELS and _training(arms[name])]
    if not names:
        return ""

    def entropy(index: int) -> Cell:
        def cell(name: str) -> str:
            lines, key = _training(arms[name]), "train/entropy_per_cell"
            known = -len(lines) <= index < len(lines) and key in lines[index]
            return f"{lines[index][key]:.2f}" if known else ""

        return cell

    def late_return(name: str) -> str:
        last = [line["rollout/ep_rew_mean"] for line in _training(arms[name])[-5:]]
        return f"{np.mean(last):.3f}"

    def mean(name: str) -> str:
        interval = controllers_interval(matrix(arms[name]))
        return f"{matrix(arms[name]).mean():.4f}{ends(interval[1:] if interval else None)}"

    columns = [
        Column("arm", lambda name: name.replace("_", " ")),
        Column("held-out bits per byte", mean),
        Column("controllers (number)", lambda name: _range(matrix(arms[name]).mean(1).tolist())),
        Column("updates", lambda name: str(len(_training(arms[name])))),
        Column("meta-training return, last 5 updates [nats]", late_return),
        Column("entropy per cell after update 1", entropy(0)),
        Column("after 10", entropy(9)),
        Column("at the end [nats]", entropy(-1)),
    ]
    return engine.table([name for name in ("paper", *names) if name in arms], columns)


def _training(members: Sequence[Result]) -> Sequence[Mapping[str, float]]:
    """Returns the metrics of each update of an arm's first controller, if it has any."""
    lines: Sequence[Mapping[str, float]] = members[0]["extra"].get("training", [])
    return lines


def cost_table(file: Path) -> str:
    """Returns section 4.3, measured: meta-training in runs, and the cost of a decision."""
    if not file.exists():
        return ""
    benchmarks, rows = json.loads(file.read_text()), []
    for threads in ("1 thread", "2 threads"):
        cost = benchmarks[f"run_equivalents, {threads}"]
        for ratio in (4, 16, 128):
            found = cost[f"ratio {ratio}"]
            title = f"400 episodes in deployed runs, deployment at {ratio} x the tokens, {threads}"
            rows.append([title, f"{found['median']:.1f} [{found['min']:.1f}, {found['max']:.1f}]"])
        share = benchmarks[f"controller_overhead, {threads}"]["share of a window"]["median"]
        rows.append([f"controller's share of a deployed window, {threads}", f"{100 * share:.3f} %"])
    return markdown_table(["quantity (median [min, max] of alternating rounds)", "measured"], rows)


def draw_dynamics(file: Path, arms: Mapping[str, Sequence[Result]]) -> None:
    """Draws the probe loss over training (Figure 2)."""
    curves = {}
    for names in DYNAMICS:
        name = next((name for name in names if name in arms), "")
        rows = [r for r in _all_rows(arms.get(name, [])) if r["divergence_reason"] is None]
        if rows:
            values = np.array([row["probe_curve"] for row in rows]) / np.log(2.0)
            curves[LABELS[name]] = (np.array(rows[0]["steps"]), values)
    figures.training_dynamics(file, curves, "probe loss [bits per byte]")


def draw_actions(file: Path, members: Sequence[Result]) -> None:
    """Draws the actions of an arm's controllers, over those tried in meta-training (Figure 3)."""
    panels = [result["rows"][0]["panel"] for result in members]
    tried = [result["extra"]["actions"] for result in members]
    quartiles = []
    for key in ("low", "median", "high"):
        positions = np.mean([actions[key] for actions in tried], 0)
        quartiles.append(np.exp(np.log(100.0) * positions))

    steps = np.array(members[0]["rows"][0]["steps"])
    schedules = [np.stack(list(panel.values()), 1) for panel in panels]
    names = list(panels[0])
    figures.controller_actions(file, steps, *quartiles, names=names, schedules=schedules)


def draw_learning(file: Path, arms: Mapping[str, Sequence[Result]], key: str) -> bool:
    """Draws a metric of every update, a line per controller. False if no arm has it."""
    curves = {}
    for name, members in arms.items():
        trainings = [result["extra"].get("training", []) for result in members]
        histories = [[line.get(key) for line in lines] for lines in trainings]
        if histories[0] and None not in histories[0]:
            updates = np.arange(1, len(histories[0]) + 1)
            curves[label(name)] = (updates, np.array(histories, float))
    if curves:
        figures.learning_curves(file, curves, LEARNING[key])
    return bool(curves)


def report(folder: Path) -> None:
    """Writes README.md, summary.json and the figures from the job files in `folder`/jobs."""
    results = engine.load_results(folder / "jobs")
    if REFERENCE not in results:
        print(f"no report yet: {folder / 'jobs'} lacks {REFERENCE}")
        return
    arms, summary = engine.by_arm(results), summarize(results)
    seeds = [row["seed"] for row in results[REFERENCE]["rows"]]

    def comparison() -> str:
        file = folder / "comparison.png"
        engine.draw_comparison(file, summary, _main_methods(summary), label)
        return "![comparison](comparison.png)"

    def dynamics() -> str:
        draw_dynamics(folder / "figure2_dynamics.png", arms)
        return "![dynamics](figure2_dynamics.png)"

    def actions(arm: str) -> str:
        if arm not in arms:
            return ""
        draw_actions(folder / f"figure3_actions_{arm}.png", arms[arm])
        return f"![{arm}](figure3_actions_{arm}.png)"

    def learning(group: str, key: str, name: str) -> str:
        is_ablation = group == "ablations"
        some = {arm: found for arm, found in arms.items() if (arm not in LABELS) == is_ablation}
        file = f"{name}_ablations.png" if is_ablation else f"{name}.png"
        return f"![{name}]({file})" if draw_learning(folder / file, some, key) else ""

    def sweeps() -> str:
        names = [name for name in LABELS if name.startswith(("tuned_", "sweep_"))]
        done = [name for name in names if name in results]
        return "\n\n".join(f"### {LABELS[name]}\n\n{sweep_table(results[name])}" for name in done)

    parts: dict[str, engine.Part] = {
        "command": lambda: engine.command(results[REFERENCE]),
        "commits": lambda: engine.commits(results),
        "corpus": lambda: str(results[REFERENCE]["facts"]["corpus"]),
        "seeds": lambda: f"{seeds[0]} to {seeds[-1]}",
        "main_table": lambda: main_table(summary),
        "comparison": comparison,
        "dynamics": dynamics,
        "actions": actions,
        "sweeps": sweeps,
        "learning": learning,
        "ablation_table": lambda: ablation_table(arms),
        "cost_table": lambda: cost_table(folder.parent / "benchmarks.json"),
    }
    engine.write_report(folder, TEMPLATE, parts, summary)
    print(main_table(summary))
