"""Tables and figures of the JEL experiment, from its job files alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train_agents import figures
from train_agents.results import (
    FEWEST_CONTROLLERS,
    controllers_interval,
    markdown_table,
    mean_interval,
    paired_relative_interval,
)

Job = Mapping[str, Any]

LABELS = {
    "baseline_constant_warmdown": "conservative base, controller off (the paper's suboptimal)",
    "baseline_constant": "conservative base, constant rate",
    "baseline_cosine": "conservative base, cosine",
    "baseline_wsd": "conservative base, warmup-stable-decay",
    "baseline_cosine_tuned": "hand-tuned rates, cosine",
    "baseline_wsd_tuned": "hand-tuned rates, warmup-stable-decay",
    "baseline_nanochat": "nanochat's rates, schedule and Muon, untuned, without its rule for the batch size",
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
#: Methods whose dynamics Figure 2 shows, the first of each line that there is.
SHOWN = (
    (REFERENCE,),
    ("tuned_schedule_free_adamw", "sweep_schedule_free_sgd"),
    ("tuned_uniform", "sweep_constant"),
    ("tuned_hand_tuned", "baseline_hand_tuned"),
    *(("search_cma",), ("paper",), ("ours",)),
)
#: What differences are stated to -> its jobs, of which the first that there is counts; see
#: summarize for schedule-free.
REFERENCES = {
    "base": (REFERENCE,),
    "constant": ("baseline_constant",),
    "hand_tuned": ("tuned_hand_tuned", "baseline_hand_tuned"),
}


def load_jobs(folder: Path) -> dict[str, Job]:
    """Name -> result of every job that is done."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}


def grouped(jobs: Mapping[str, Job]) -> dict[str, list[Job]]:
    """Method -> its results: one per controller of an arm, one for anything else."""
    groups: dict[str, list[Job]] = {}
    for name, job in jobs.items():
        stem, _, number = name.rpartition("-")
        groups.setdefault(stem if number.isdigit() else name, []).append(job)
    return groups


def scores(job: Job) -> np.ndarray:
    """Held-out bits per byte of each evaluation seed; a run that diverged counts as a uniform guess over bytes, 8."""
    return np.array(
        [
            8.0 if row["bpb"] is None or row["divergence_reason"] else row["bpb"]
            for row in job["rows"]
        ]
    )


def _run_equivalents(jobs: Sequence[Job]) -> float | None:
    """Tokens that one controller, search or sweep was made with, in those of one deployed run; None if not recorded."""
    configuration = jobs[0]["configuration"]
    if "meta_kwargs" not in configuration:
        return jobs[0]["extra"].get("runs_spent")
    meta, deployed = configuration["meta_kwargs"], configuration["deployment_kwargs"]
    episodes = configuration.get("num_episodes", 8 * configuration.get("num_updates", 0))
    return episodes * meta["batch_tokens"] / deployed["batch_tokens"]


def summarize(jobs: Mapping[str, Job]) -> dict[str, dict[str, Any]]:
    """Method -> mean, interval, controllers, differences from the reference baselines, tokens and runs spent."""
    groups = grouped(jobs)
    seeds = {tuple(row["seed"] for row in job["rows"]) for job in jobs.values()}
    if len(seeds) != 1:
        raise ValueError(
            f"jobs were evaluated on different seeds, so nothing can be paired: {sorted(seeds)}"
        )
    done = {key: [name for name in names if name in groups] for key, names in REFERENCES.items()}
    references = {key: scores(groups[names[0]][0]) for key, names in done.items() if names}
    free = [name for name in groups if name.startswith("tuned_schedule_free")]
    free = free or [name for name in groups if name.startswith("sweep_schedule_free")]
    if free:
        references["schedule_free"] = scores(
            groups[min(free, key=lambda name: _tuned_to(groups[name][0]))][0]
        )
    summary: dict[str, dict[str, Any]] = {}
    for name, members in groups.items():
        matrix = np.stack([scores(job) for job in members])  # (controllers, seeds)
        found = controllers_interval(matrix) if len(members) > 1 else mean_interval(matrix[0])
        final = [
            row["train_loss"]
            for job in members
            for row in job["rows"]
            if row["train_loss"] is not None
        ]
        summary[name] = {
            "bpb": float(matrix.mean()),
            "interval": None if found is None else [found.low, found.high],
            "controllers": [float(value) for value in matrix.mean(1)],
            "train_loss": float(np.mean(final)) if final else None,
            "diverged": int(
                sum(row["divergence_reason"] is not None for job in members for row in job["rows"])
            ),
            "seeds": matrix.shape[1],
            "run_equivalents": _run_equivalents(members),
            "versus": {key: _below(matrix, reference) for key, reference in references.items()},
        }
    return summary


def _tuned_to(job: Job) -> float:
    """Probe loss on the tuning seeds, by which a sweep or a search chose [nats per token]."""
    return min(
        float(entry.get("probe_loss", entry.get("score"))) for entry in job["extra"]["table"]
    )


def _percent(values: Sequence[float] | None) -> str:
    if values is None:
        return ""
    interval = (
        f" [{100 * values[1]:+.1f}, {100 * values[2]:+.1f}]"
        if len(values) == 3
        else " (not claimed)"
    )
    return f"{100 * values[0]:+.1f} %{interval}"


def _ends(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" [{interval[0]:.4f}, {interval[1]:.4f}]"


def _spread(means: Sequence[float]) -> str:
    """Range over controllers and their number; empty for what is no controller."""
    return f"{min(means):.3f} to {max(means):.3f} ({len(means)})" if len(means) > 1 else ""


def _below(matrix: np.ndarray, reference: np.ndarray) -> list[float]:
    """How far a method lies below a reference, paired by seed: mean and 95 % interval [1].

    Args:
        matrix: held-out bits per byte, (controllers, seeds).
        reference: of the reference, (seeds,).

    Returns:
        The mean, and the ends of the interval. Of several controllers it is over their means over
        the seeds, and holds for these runs of the reference; of too few there is none. Of a single
        method it is over seeds.
    """
    if len(matrix) == 1:
        return [float(v) for v in paired_relative_interval(matrix[0], reference)]
    below = (reference - matrix) / reference
    found = controllers_interval(below)
    return [float(below.mean())] if found is None else [float(v) for v in found]


def main_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """The paper's Table 1, with everything that stands beside it, best last."""
    rows = []
    for name, entry in sorted(summary.items(), key=lambda item: -item[1]["bpb"]):
        if name not in LABELS and not name.startswith("baseline_"):
            continue
        rows.append(
            [
                LABELS.get(name, name.removeprefix("baseline_").replace("_", " ")),
                f"{entry['bpb']:.4f}{_ends(entry['interval'])}",
                _spread(entry["controllers"]),
                "" if entry["train_loss"] is None else f"{entry['train_loss']:.3f}",
                _percent(entry["versus"].get("base")),
                _percent(entry["versus"].get("constant")),
                _percent(entry["versus"].get("schedule_free")),
                _percent(entry["versus"].get("hand_tuned")),
                "" if entry["run_equivalents"] is None else f"{entry['run_equivalents']:.0f}",
            ]
        )
    headers = [
        "method", "held-out bits per byte", "controllers (number)", "train loss [nats]", "below conservative base",
        "below its constant rate",
        "below best schedule-free", "below hand-tuned", "made with [runs, by tokens]",
    ]  # fmt: skip
    return markdown_table(headers, rows)


def sweep_table(job: Job) -> str:
    """One sweep or search: what was tried and its probe loss, which chose; of a sweep its held-out scores, too."""
    if "interior" in job["extra"]:
        names = list(job["extra"]["chosen"])
        lines = [
            [*(f"{entry['point'][name]:.4g}" for name in names), f"{entry['score']:.4f}"]
            for entry in sorted(job["extra"]["table"], key=lambda entry: entry["score"])
        ]
        spent = f"{job['extra']['runs_spent']} runs; in every coordinate a lower and a higher value are no better."
        return f"{spent}\n\n" + markdown_table([*names, "probe loss [nats]"], lines)
    rows = [
        [
            entry["configuration"]
            + (" (chosen)" if entry["configuration"] == job["extra"]["chosen"] else ""),
            f"{entry['probe_loss']:.4f}",
            ", ".join("diverged" if value is None else f"{value:.4f}" for value in entry["bpb"]),
        ]
        for entry in job["extra"]["table"]
    ]
    return markdown_table(
        ["configuration", "probe loss [nats]", "held-out bits per byte, per tuning seed"], rows
    )


def ablation_table(groups: Mapping[str, Sequence[Job]]) -> str:
    """Section 4.4: every ablation beside the paper's arm; an interval, over controllers, where there are enough."""
    rows = []
    names = ["paper", *(name for name in groups if name not in LABELS)]
    for name in names:
        members = groups.get(name, [])
        if not members or "training" not in members[0]["extra"]:
            continue
        matrix = np.stack([scores(job) for job in members])  # (controllers, seeds)
        interval = controllers_interval(matrix)
        training = members[0]["extra"]["training"]
        rows.append(
            [
                name.replace("_", " "),
                f"{matrix.mean():.4f}{_ends(interval[1:] if interval else None)}",
                _spread(matrix.mean(1).tolist()),
                str(len(training)),
                _late_return(training),
                _entropy(training, 0),
                _entropy(training, 9),
                _entropy(training, -1),
            ]
        )
    headers = ["arm", "held-out bits per byte", "controllers (number)", "updates",
               "meta-training return, last 5 updates [nats]", "entropy per cell after update 1", "after 10",
               "at the end [nats]"]  # fmt: skip
    return markdown_table(headers, rows)


def cost_table(benchmarks: Mapping[str, Any]) -> str:
    """Section 4.3, measured: meta-training in run equivalents, and what deciding costs."""
    rows = []
    for threads in ("1 thread", "2 threads"):
        cost, overhead = (
            benchmarks[f"run_equivalents, {threads}"],
            benchmarks[f"controller_overhead, {threads}"],
        )
        for key in ("ratio 4", "ratio 16", "ratio 128"):
            rows.append([f"400 episodes in deployed runs, deployment at {key.split()[1]} x the tokens, {threads}",
                         f"{cost[key]['median']:.1f} [{cost[key]['min']:.1f}, {cost[key]['max']:.1f}]"])  # fmt: skip
        share = overhead["share of a window"]
        rows.append(
            [
                f"controller's share of a deployed window, {threads}",
                f"{100 * share['median']:.3f} %",
            ]
        )
    return markdown_table(["quantity (median [min, max] of alternating rounds)", "measured"], rows)


def _late_return(training: Sequence[Mapping[str, float]]) -> str:
    return (
        f"{np.mean([line['rollout/ep_rew_mean'] for line in training[-5:]]):.3f}"
        if training
        else ""
    )


def _entropy(training: Sequence[Mapping[str, float]], index: int) -> str:
    if index >= len(training) or "train/entropy_per_cell" not in training[index]:
        return ""
    return f"{training[index]['train/entropy_per_cell']:.2f}"


def draw_figures(
    folder: Path, groups: Mapping[str, Sequence[Job]], summary: Mapping[str, Mapping[str, Any]]
) -> None:
    """Figures 2 and 3, learning curves, entropies and the comparison, as PNG."""
    curves = {}
    for names in SHOWN:
        for name in [name for name in names if name in groups][:1]:
            rows = [
                row
                for job in groups[name]
                for row in job["rows"]
                if row["divergence_reason"] is None
            ]
            if rows:
                points = np.array([row["probe_curve"] for row in rows]) / np.log(2.0)
                curves[LABELS[name]] = (np.array(rows[0]["steps"]), points)
    figures.training_dynamics(folder / "figure2_dynamics.png", curves, "probe loss [bits per byte]")
    for arm in ("paper", "ours"):
        members = groups.get(arm, [])
        if members:
            panels = [job["rows"][0]["panel"] for job in members]
            quartiles = [
                np.exp(
                    np.log(100.0) * np.mean([job["extra"]["actions"][key] for job in members], 0)
                )
                for key in ("low", "median", "high")
            ]
            steps = np.array(members[0]["rows"][0]["steps"])
            schedules = [np.stack([panel[name] for name in panel], 1) for panel in panels]
            picture = folder / f"figure3_actions_{arm}.png"
            figures.controller_actions(
                picture, steps, *quartiles, names=list(panels[0]), schedules=schedules
            )
    arms = {
        name: members for name, members in groups.items() if members[0]["extra"].get("training")
    }
    long = {name: members for name, members in arms.items() if name in LABELS}
    short = {name: members for name, members in arms.items() if name not in LABELS}
    for key, label, file in (
        ("rollout/ep_rew_mean", "return of an episode [nats]", "learning_curves"),
        ("train/entropy_per_cell", "entropy per cell [nats]", "entropy"),
    ):
        for some, suffix in ((long, ""), (short, "_ablations")):
            lines = _histories(some, key)
            if lines:
                figures.learning_curves(folder / f"{file}{suffix}.png", lines, label)
    bars = [(LABELS.get(name, name.removeprefix("baseline_").replace("_", " ")), entry["bpb"],
             *(entry["interval"] or [entry["bpb"]] * 2))
            for name, entry in summary.items() if name in LABELS or name.startswith("baseline_")]  # fmt: skip
    figures.comparison_bars(
        folder / "comparison.png", sorted(bars, key=lambda bar: -bar[1]), "held-out bits per byte"
    )


def _histories(
    groups: Mapping[str, Sequence[Job]], key: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Label -> (updates, one line per controller) of a metric that every update has."""
    lines = {}
    for name, members in groups.items():
        histories = [[line.get(key) for line in job["extra"]["training"]] for job in members]
        if None not in histories[0]:
            label = LABELS.get(name, name.replace("_", " "))
            lines[label] = (np.arange(1, len(histories[0]) + 1), np.array(histories, dtype=float))
    return lines


def report(folder: Path) -> None:
    """Writes README.md, summary.json and the figures from the job files in `folder`/jobs."""
    jobs = load_jobs(folder / "jobs")
    if REFERENCE not in {name for name in jobs}:
        print(f"no report yet: {folder / 'jobs'} lacks {REFERENCE}")
        return
    groups, summary = grouped(jobs), summarize(jobs)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    draw_figures(folder, groups, summary)
    facts = jobs[REFERENCE]["facts"]
    commits = sorted(
        {
            str(job["facts"]["commit"])[:12] + (" (changed)" if job["facts"]["dirty"] else "")
            for job in jobs.values()
        }
    )
    command = " ".join(["python", *facts["command"]])
    seeds = [row["seed"] for row in jobs[REFERENCE]["rows"]]
    parts = [
        "# JEL on `nano`",
        f"Command: `{command}`  \nCommits of the jobs: {', '.join(commits)}  \nCorpus sha256: `{facts['corpus']}`  \n"
        f"Evaluation seeds: {seeds[0]} to {seeds[-1]}; intervals are 95 %, Student's, over seeds, or over controllers "
        f"where there are at least {FEWEST_CONTROLLERS}. Of fewer controllers none is given, and nothing is claimed. "
        "Differences are paired by seed; the runs of the method that is compared with are taken as they are. "
        "`Made with` counts the runs of tuning or meta-training; 0 is untuned. nanochat's rule for the batch size, "
        "sqrt(tokens / 524,288) on all rates, is left out of its rows; at 512 tokens a step it is 1/32. "
        "Figure 3: quartiles over the episodes of meta-training, averaged over the controllers.",
        "## Table 1: held-out bits per byte",
        main_table(summary),
        "![comparison](comparison.png)\n\n![dynamics](figure2_dynamics.png)",
        "## What the controllers do (Figure 3)",
        "![paper](figure3_actions_paper.png)\n\n![ours](figure3_actions_ours.png)",
        "## Sweeps (Table 3)",
        *(
            f"### {LABELS[name]}\n\n{sweep_table(jobs[name])}"
            for name in LABELS
            if name.startswith(("tuned_", "sweep_")) and name in jobs
        ),
        "## Learning",
        "![learning curves](learning_curves.png)\n\n![entropy](entropy.png)",
    ]
    if any(f"{name}-0" in jobs for name in groups if name not in LABELS):
        parts += [
            "## Ablations (section 4.4)",
            f"The range is over controllers. The interval is Student's over them, of at least {FEWEST_CONTROLLERS}; of "
            "fewer, nothing is claimed.",
            ablation_table(groups),
            "![entropy](entropy_ablations.png)\n\n![learning curves](learning_curves_ablations.png)",
        ]
    benchmarks = folder.parent / "benchmarks.json"
    if benchmarks.exists():
        parts += ["## Cost (section 4.3)", cost_table(json.loads(benchmarks.read_text()))]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n")
    print(main_table(summary))
    print(f"written: {folder}/README.md, summary.json and figures")
