"""Tables and figures of the Sidecar's experiments, from their job files alone; any of them may be
missing.

Bits per byte and perplexity both stand in every table, so that nobody takes one for the other.
Tables and figures stand together, past the usual length of a module, as each is a few lines about
the same jobs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpenv.channels import CHANNELS
from train_agents import figures
from train_agents.experiments.forensics import STATISTICS
from train_agents.experiments.sidecar_claims import (
    CLAIMS,
    EXPERIMENTS,
    LABELS,
    Job,
    advantage,
    final_values,
    scores,
    shown,
    summarize,
    verdict,
)
from train_agents.results import markdown_table, read_result

SWEEP_NOTE = (
    "A sweep moves the rates of all tensors, embedding and unembedding, too; cells of `lr/layer` reach those of the "
    "layers alone."
)
SIGNAL_NOTE = (
    "One cell is moved by one standard deviation of a fresh policy for one step, up and down, on the same batches; a "
    "number of cells are summed up by the root mean square of their mean effects. The noise is the standard deviation "
    "of the credit over steps; for `less other rows'` that of five rows on the same batches about each other's mean, "
    "which explore with all their cells from the state on (rows that are apart for longer differ by more). An effect's "
    "sign is known at two standard errors after (2 / signal to noise)^2 steps. `not told from zero`: within two "
    "standard errors of the measurement, as in the dead zone of a dormant cap. For channels of the forward pass the "
    "probe is read while the dial stands where it was moved to: what is called its effect there is the dial's direct "
    "effect on the loss, not what it did to the weights."
)


def load_jobs(folder: Path) -> dict[str, Job]:
    """Name -> result of every job that is done; the rows of `<name>-<number>` stand with those of `<name>`."""
    jobs: dict[str, Job] = {}
    for file in sorted(folder.glob("*.json"), key=lambda file: file.stem):
        stem, _, number = file.stem.rpartition("-")
        result = read_result(file)
        if number.isdigit() and stem in jobs:
            jobs[stem]["rows"].extend(result["rows"])
        else:
            jobs[file.stem] = result
    return jobs


def _percent(found: Sequence[float] | None) -> str:
    if found is None:
        return ""
    interval = (
        f" [{100 * found[1]:+.2f}, {100 * found[2]:+.2f}]" if len(found) == 3 else " (one seed)"
    )
    return f"{100 * found[0]:+.2f} %{interval}"


def arm_table(experiment: str, summary: Mapping[str, Mapping[str, Any]]) -> str:
    """One experiment: every arm, and how far it lies below the arms it is compared with."""
    _, arms, compared = EXPERIMENTS[experiment]
    references = [name for name in compared if name in summary]
    rows = []
    for name in (name for name in arms if name in summary):
        entry = summary[name]
        interval = (
            f" [{entry['interval'][0]:.4f}, {entry['interval'][1]:.4f}]"
            if entry["interval"]
            else ""
        )
        line = [LABELS[name], f"{entry['bpb']:.4f}{interval}", f"{entry['perplexity']:.3f}"]
        for reference in references:
            versus = entry["versus"].get(reference, {"bpb": None, "perplexity": None})
            line += [_percent(versus["bpb"]), _percent(versus["perplexity"])]
        rows.append([*line, f"{entry['diverged']}"])
    headers = ["arm", "held-out bits per byte", "perplexity per byte"]
    for reference in references:
        headers += [f"below {reference}: bits", "perplexity"]
    return markdown_table([*headers, "diverged"], rows)


def claim_table(jobs: Mapping[str, Job]) -> str:
    """The paper's claims beside what was measured."""
    rows = []
    for claim in CLAIMS:
        found: dict[str, Any] = {"bpb": None, "perplexity": None}
        if claim.arm in jobs and claim.reference in jobs:
            pair = [scores(jobs[name], claim.step) for name in (claim.arm, claim.reference)]
            found = {unit: advantage(pair[0], pair[1], unit) for unit in ("bpb", "perplexity")}
        said = claim.direction if claim.number is None else f"{100 * claim.number:+.1f} %"
        measured = [_percent(found["perplexity"]), _percent(found["bpb"])]
        rows.append([claim.text, said, *measured, verdict(found["perplexity"], claim)])
    headers = [
        "claim (section)",
        "the paper's",
        "measured, perplexity",
        "measured, bits per byte",
        "supported",
    ]
    return markdown_table(headers, rows)


def price_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """What deciding costs, and what was done to the learning rates."""
    rows = []
    for name, entry in summary.items():
        if entry["env_ms"] is None:
            continue
        rates = entry["rates"]
        spread = f"{rates['mean']:.2f} ({rates['low']:.2f} to {rates['high']:.2f})" if rates else ""
        learned = [
            f"{entry[key]:.3g}" if entry[key] is not None else ""
            for key in ("advantage_rms", "evidence")
        ]
        rows.append(
            [f"`{name}`", f"{entry['env_ms']:.1f}", f"{entry['agent_ms']:.1f}", *learned, spread]
        )
    headers = ["arm", "runs [ms per decision]", "sidecars [ms per decision]", "noise of an advantage, RMS [reward]",
               "evidence at the end", "final rate multipliers, mean (range)"]  # fmt: skip
    return markdown_table(headers, rows)


def sweep_table(job: Job) -> str:
    """One sweep: what was tried, its probe loss (which chose), its held-out bits on the tuning seeds, and its price."""
    rows = [
        [
            entry["configuration"]
            + (" (chosen)" if entry["configuration"] == job["extra"]["chosen"] else ""),
            f"{entry['probe_loss']:.4f}",
            ", ".join("diverged" if value is None else f"{value:.4f}" for value in entry["bpb"]),
        ]
        for entry in job["extra"]["table"]
    ]
    table = markdown_table(
        ["configuration", "probe loss [nats]", "held-out bits per byte, per tuning seed"], rows
    )
    return f"{table}\n\nRuns spent on the choice: {job['extra']['runs_spent']}."


def signal_table(job: Job) -> str:
    """Signal and noise of each reward, at each state."""
    rows = [
        [
            f"{row['step']}", f"`{row['channel']}` ({row['cells']})", row["reward"],
            f"{row['effect']:.1e} ± {row['standard_error']:.0e}", f"{row['noise']:.2e}",
            f"{row['snr']:.1e}" if row["snr"] else "not told from zero",
            f"{row['steps_to_know']:.1e}" if row["steps_to_know"] else "",
        ]
        for row in job["rows"]
    ]  # fmt: skip
    headers = ["step", "channel (cells)", "reward", "effect per sigma ± standard error [nats]", "noise [nats]",
               "signal to noise", "steps to know its sign"]  # fmt: skip
    return markdown_table(headers, rows)


def weight_decay_notes(jobs: Mapping[str, Job]) -> list[str]:
    """Sections 5.2 to 5.5 in numbers, as far as they were measured."""
    notes = []
    if "long_weight_decay" in jobs:
        final = final_values(jobs["long_weight_decay"], "weight_decay")
        if final:
            notes.append(
                f"Final coefficients are {final['low']:.3g} to {final['high']:.3g} times the base (geometric mean "
                f"{final['mean']:.3g}); the paper has nearly two orders of magnitude between the cells."
            )
    if "long_weight_decay" in jobs and "long_foundational" in jobs:
        curves = {
            name: _mean_curve(jobs[name]) for name in ("long_weight_decay", "long_foundational")
        }
        steps, ours = curves["long_weight_decay"]
        early = (steps > 0) & (steps <= 0.8 * steps[-1])
        behind = int((ours > curves["long_foundational"][1])[early].sum())
        notes.append(
            f"Behind the foundational surface at {behind} of {int(early.sum())} points of the first 80 % of the run; "
            "the paper: at all of them (12,000 of 15,000 steps)."
        )
        for name, (_, values) in curves.items():
            late = 100 * (2.0 ** (values[-1] - values.min()) - 1)
            notes.append(
                f"{LABELS[name]}: final perplexity {late:.1f} % above its lowest (the paper's loses 25 %)."
            )
    return notes + (forensic_notes(jobs["forensics"]["rows"]) if "forensics" in jobs else [])


def forensic_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Section 5.5 in numbers, and how far runs come apart that differ in something else."""
    cosine, difference, count = (
        np.mean([row[key] for row in rows])
        for key in ("mean_cosine", "mean_relative_difference", "above_095")
    )
    control = [
        np.mean([row["control"][key] for row in rows])
        for key in ("mean_cosine", "mean_relative_difference")
    ]
    tensors = [
        (name, entry)
        for row in rows
        for name, entry in row["tensors"].items()
        if entry["cosine"] is not None
    ]  # a tensor of zeros has none
    held = sorted((entry for _, entry in tensors), key=lambda entry: -entry["choice"])[
        : max(1, len(tensors) // 20)
    ]
    roles: dict[str, list[float]] = {}
    for name, entry in tensors:
        roles.setdefault(name.rpartition(".")[2], []).append(entry["cosine"])
    means = {role: float(np.mean(values)) for role, values in roles.items()}
    lowest = min(means, key=lambda role: means[role])
    ranks = [
        np.mean([entry[key] for _, entry in tensors])
        for key in ("effective_rank", "reference_effective_rank")
    ]
    loss = [
        100 * np.mean([entry["norm_loss"] for entry in some])
        for some in (held, [entry for _, entry in tensors])
    ]
    return [
        f"Final weights against those without the channel: mean cosine {cosine:.2f} (the paper's 0.88), mean relative "
        f"difference {difference:.2f} (0.49), {count:.1f} tensors with a cosine above 0.95 (0). For scale: of two runs "
        f"without the channel, one with the Sidecar and one without, these are {control[0]:.2f} and {control[1]:.2f}.",
        f"The twentieth of the tensors that are held down most lost {loss[0]:.0f} % of their norm (all tensors: "
        f"{loss[1]:.0f} %); the mean effective rank is {ranks[0]:.1f} ({ranks[1]:.1f} without the channel); furthest "
        f"apart are the `{lowest}` projections, mean cosine {means[lowest]:.2f} (the paper's: `down`).",
    ]


def layer_rate_notes(jobs: Mapping[str, Job]) -> list[str]:
    """Section 7 in numbers: how far the layers' rates came apart, and how many froze."""
    if "layer_lr" not in jobs:
        return []
    extra, rates = jobs["layer_lr"]["extra"], CHANNELS["lr"]
    columns = [column for column, name in enumerate(extra["names"]) if name.startswith("lr/layer.")]
    values = rates.values(np.array(extra["final_mean"])[:, columns])  # (N, L)
    ratios, frozen = values.max(1) / values.min(1), (values < 1.05 * rates.bounds[0]).sum(1)
    return [
        f"At the end the highest rate of a layer is {np.mean(ratios):.2f} times the lowest (mean over seeds; the paper "
        f"has about 3), and {np.mean(frozen):.1f} of {len(columns)} layers stand at the floor (the paper's first "
        "variant drove all there)."
    ]


def correlation_table(job: Job) -> str:
    """Section 5.4: what of a tensor predicts its final weight decay, over the seeds."""
    paper = {"frobenius_norm": "-0.20", "std": "-0.04"}
    rows = []
    for key in STATISTICS:
        values = [
            row["correlations"][key] for row in job["rows"] if row["correlations"][key] is not None
        ]
        spread = (
            [f"{np.mean(values):+.2f}", f"{min(values):+.2f} to {max(values):+.2f}"]
            if values
            else ["", ""]
        )
        rows.append([key.replace("_", " "), *spread, paper.get(key, "weaker than -0.20")])
    return markdown_table(
        ["property of the tensor", "r, mean over seeds", "range", "the paper's"], rows
    )


def _mean_curve(job: Job) -> tuple[np.ndarray, np.ndarray]:
    steps, values = _curve(job)
    return steps, values.mean(0)


def _curve(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Steps (P,) and held-out bits per byte (rows, P) of the rows that did not diverge; of all, if none did."""
    rows = [row for row in job["rows"] if row["divergence_reason"] is None] or job["rows"]
    values = [[8.0 if value is None else value for value in row["bpb_curve"]] for row in rows]
    return np.array(rows[0]["steps"]), np.array(values, dtype=np.float64)


def _trajectories(job: Job, channel: str) -> dict[str, dict[str, np.ndarray]]:
    """Kind of tensor -> layer -> values under the mean of the policies, of the first seed's run, (K,)."""
    means = np.array(job["extra"]["trace"]["mean"])[:, 0]  # (K, A)
    panels: dict[str, dict[str, np.ndarray]] = {}
    for column, name in enumerate(job["extra"]["names"]):
        own, _, cell = name.partition("/layer.")
        if own == channel and cell:
            layer, _, tensor = cell.partition(".")
            panels.setdefault(tensor or "all tensors of a layer", {})[f"layer {layer}"] = CHANNELS[
                channel
            ].values(means[:, column])
    return panels


def draw_figures(
    folder: Path, jobs: Mapping[str, Job], summary: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """All figures that there are results for, as PNG; what each shows -> its file's name."""
    drawn = {}
    for experiment, (_, arms, _) in EXPERIMENTS.items():
        curves = {LABELS[name]: _curve(jobs[name]) for name in arms if name in jobs}
        if len(curves) > 1 and shown(experiment, jobs):
            drawn[f"{experiment}_curves"] = f"figure3_{experiment}.png"
            figures.training_dynamics(
                folder / f"figure3_{experiment}.png", curves, "held-out bits per byte"
            )
    for name, channel, file in (
        ("long_weight_decay", "weight_decay", "figure2_weight_decay.png"),
        ("layer_lr", "lr", "figure5_layer_lr.png"),
    ):
        if name in jobs and (panels := _trajectories(jobs[name], channel)):
            label = f"multiplier of the base {channel.replace('_', ' ').replace('lr', 'rate')}"
            figures.cell_trajectories(
                folder / file, jobs[name]["extra"]["trace"]["steps"], panels, label
            )
            drawn[name] = file
    if "forensics" in jobs:
        points = [entry for row in jobs["forensics"]["rows"] for entry in row["tensors"].values()]
        means = {
            key: [row["correlations"][key] for row in jobs["forensics"]["rows"]]
            for key in STATISTICS
        }
        clouds = {}
        for key in STATISTICS:
            known = [value for value in means[key] if value is not None]
            title = (
                f"{key.replace('_', ' ')}, mean r = {np.mean(known):+.2f}"
                if known
                else key.replace("_", " ")
            )
            clouds[title] = (
                [entry[key] for entry in points],
                [entry["choice"] for entry in points],
            )
        figures.scatter_panels(
            folder / "figure4_correlations.png", clouds, "final position of the weight decay"
        )
        drawn["forensics"] = "figure4_correlations.png"
    rewards = [
        name for name in EXPERIMENTS["rewards"][1] if name in summary and summary[name]["interval"]
    ]
    if rewards:
        bars = [
            (LABELS[name], summary[name]["bpb"], *summary[name]["interval"]) for name in rewards
        ]
        figures.comparison_bars(
            folder / "rewards.png", sorted(bars, key=lambda bar: -bar[1]), "held-out bits per byte"
        )
        drawn["rewards"] = "rewards.png"
    if "signal" in jobs:
        series: dict[str, dict[str, float | None]] = {}
        for row in jobs["signal"]["rows"]:
            series.setdefault(row["reward"], {})[f"{row['channel']}, step {row['step']}"] = row[
                "snr"
            ]
        order = sorted({key for values in series.values() for key in values}, key=_by_channel)
        ordered = {
            label: {key: values.get(key) for key in order} for label, values in series.items()
        }
        figures.logarithmic_dots(folder / "signal.png", ordered, "signal to noise of one step")
        drawn["signal"] = "signal.png"
    return drawn


def _by_channel(key: str) -> tuple[str, int]:
    channel, _, step = key.partition(", step ")
    return channel, int(step)


def report(folder: Path) -> None:
    """Writes README.md, summary.json and the figures from the job files in `folder`/jobs."""
    jobs = load_jobs(folder / "jobs")
    if not jobs:
        print(f"no report yet: no results in {folder / 'jobs'}")
        return
    summary = summarize(jobs)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    drawn = draw_figures(folder, jobs, summary)
    (folder / "README.md").write_text("\n\n".join(_parts(jobs, summary, drawn)) + "\n")
    print(claim_table(jobs))
    print(f"written: {folder}/README.md, summary.json and {len(drawn)} figures")


def _parts(
    jobs: Mapping[str, Job], summary: Mapping[str, Mapping[str, Any]], drawn: Mapping[str, str]
) -> list[str]:
    facts = next(iter(jobs.values()))["facts"]
    commits = sorted(
        {
            str(job["facts"]["commit"])[:12] + (" (changed)" if job["facts"]["dirty"] else "")
            for job in jobs.values()
        }
    )

    def picture(key: str) -> list[str]:
        return [f"![{key}]({drawn[key]})"] if key in drawn else []

    parts = [
        "# The REINFORCE Sidecar on `cell11`",
        f"Command: `{' '.join(['python', *facts['command']])}`  \nCommits of the jobs: {', '.join(commits)}  \n"
        f"Corpus sha256: `{facts['corpus']}`  \n"
        "Intervals are 95 %, Student's t over seeds; differences are paired by seed, positive where the arm lies below "
        "the reference. Perplexity is 2^(bits per byte), per byte: b bits per byte being what they are, a small "
        "percentage of bits is b ln 2 times as large a percentage of it, less than twice below 2.9 bits. A run that "
        "diverged scores 8 bits per byte. The default configuration was fixed before any reported arm: torch's own "
        "AdamW rate and decay; pilots of the Sidecar's noise and rate ran on seeds 2000-2002, scored by held-out bits "
        "per byte. Constants and schedules were chosen on tuning seeds by the probe loss.",
        "## The paper's claims",
        claim_table(jobs),
    ]
    for experiment, (title, _, _) in EXPERIMENTS.items():
        if not shown(experiment, summary):
            continue
        parts += [f"## {title}", arm_table(experiment, summary), *picture(f"{experiment}_curves")]
        if experiment == "foundational":
            parts += [*layer_rate_notes(jobs), *picture("layer_lr")]
            sweeps = [name for name in ("sweep_constant", "sweep_schedule") if name in jobs]
            parts += [SWEEP_NOTE] if sweeps else []
            parts += [f"### {LABELS[name]}\n\n{sweep_table(jobs[name])}" for name in sweeps]
        if experiment == "rewards":
            parts += picture("rewards")
        if experiment == "weight_decay":
            parts += [
                "\n".join(f"- {note}" for note in weight_decay_notes(jobs)),
                *picture("long_weight_decay"),
            ]
            parts += (
                [correlation_table(jobs["forensics"]), *picture("forensics")]
                if "forensics" in jobs
                else []
            )
    if "signal" in jobs:
        parts += [
            "## How much of it is signal",
            SIGNAL_NOTE,
            *picture("signal"),
            signal_table(jobs["signal"]),
        ]
    if any(entry["env_ms"] is not None for entry in summary.values()):
        parts += ["## Price, and what became of the rates", price_table(summary)]
    return parts
