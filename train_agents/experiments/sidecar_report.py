"""Tables and figures of the Sidecar's experiments, as parts of `results/sidecar/template.md`.

Every table has bits per byte and perplexity, so that they are not confused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from hpenv.benchmark.facts import ROOT
from hpenv.benchmark.results import markdown_table
from hpenv.control.channels import CHANNELS
from train_agents import figures
from train_agents.experiments import report as engine
from train_agents.experiments import sidecar_claims as claims
from train_agents.experiments.measures.weights import STATISTICS
from train_agents.experiments.report import Cell, Column, Result, Summary, percent
from train_agents.experiments.sidecar_claims import COMPARISONS, LABELS, UNITS, final_values, scores

TEMPLATE = ROOT / "results/sidecar/template.md"
#: Correlations of a tensor's properties with its final weight decay, in the paper (section 5.4).
PAPER_CORRELATIONS = {"frobenius_norm": "-0.20", "std": "-0.04"}
#: Job whose cells are drawn -> channel, file (Figures 2 and 5).
TRAJECTORIES = {
    "long_weight_decay": ("weight_decay", "figure2_weight_decay.png"),
    "layer_lr": ("lr", "figure5_layer_lr.png"),
}


def _percent(found: Sequence[float] | None) -> str:
    return percent(found, digits=2, alone=" (one seed)")


def arm_table(comparison: str, summary: Summary) -> str:
    """Returns the arms of a comparison, and how far each lies below its references."""
    columns = [
        Column("arm", LABELS.__getitem__),
        engine.bpb_column(summary),
        Column("perplexity per byte", engine.number_cell(summary, "perplexity", ".3f")),
    ]
    for reference in COMPARISONS[comparison].references:
        if reference in summary:
            below = f"below {reference}: bits"
            columns.append(Column(below, _below(summary, reference, "bpb")))
            columns.append(Column("perplexity", _below(summary, reference, "perplexity")))
    columns.append(Column("diverged", engine.number_cell(summary, "diverged", "d")))
    names = [name for name in COMPARISONS[comparison].arms if name in summary]
    return engine.table(names, columns)


def _below(summary: Summary, reference: str, unit: str) -> Cell:
    return lambda name: _percent(summary[name]["versus"].get(reference, {}).get(unit))


def claim_table(results: Mapping[str, Result]) -> str:
    """Returns the paper's claims next to what was measured."""
    rows = []
    for claim in claims.CLAIMS:
        found: dict[str, Any] = dict.fromkeys(UNITS)
        if claim.arm in results and claim.reference in results:
            ours, theirs = (scores(results[n], claim.step) for n in (claim.arm, claim.reference))
            found = {unit: claims.advantage(ours, theirs, unit) for unit in UNITS}
        said = claim.direction if claim.number is None else f"{100 * claim.number:+.1f} %"
        measured = [_percent(found["perplexity"]), _percent(found["bpb"])]
        rows.append([claim.text, said, *measured, claims.verdict(found["perplexity"], claim)])
    headers = ("claim (section)", "the paper's", "measured, perplexity", "measured, bits per byte")
    return markdown_table([*headers, "supported"], rows)


def price_table(summary: Summary) -> str:
    """Returns the cost of a decision, and the final learning rates."""

    def rates(name: str) -> str:
        found = summary[name]["rates"]
        return f"{found['mean']:.2f} ({found['low']:.2f} to {found['high']:.2f})" if found else ""

    columns = [
        Column("arm", lambda name: f"`{name}`"),
        Column("runs [ms per decision]", engine.number_cell(summary, "env_ms", ".1f")),
        Column("sidecars [ms per decision]", engine.number_cell(summary, "agent_ms", ".1f")),
        Column(
            "noise of an advantage, RMS [reward]",
            engine.number_cell(summary, "advantage_rms", ".3g"),
        ),
        Column("evidence at the end", engine.number_cell(summary, "evidence", ".3g")),
        Column("final rate multipliers, mean (range)", rates),
    ]
    return engine.table([n for n, e in summary.items() if e["env_ms"] is not None], columns)


def signal_table(result: Result) -> str:
    """Returns signal and noise of each reward, at each state."""
    rows = []
    for row in result["rows"]:
        place = (f"{row['step']}", f"`{row['channel']}` ({row['cells']})", row["reward"])
        effect = f"{row['effect']:.1e} ± {row['standard_error']:.0e}"
        ratio = f"{row['snr']:.1e}" if row["snr"] else "not told from zero"
        steps = f"{row['steps_to_know']:.1e}" if row["steps_to_know"] else ""
        rows.append((*place, effect, f"{row['noise']:.2e}", ratio, steps))
    headers = (
        *("step", "channel (cells)", "reward", "effect per sigma ± standard error [nats]"),
        *("noise [nats]", "signal to noise", "steps to know its sign"),
    )
    return markdown_table(headers, rows)


def weight_decay_notes(results: Mapping[str, Result]) -> list[str]:
    """Returns sections 5.2 to 5.5 in numbers, as far as they were measured."""
    notes = []
    if final := final_values(results.get("long_weight_decay"), "weight_decay"):
        notes.append(
            f"Final coefficients are {final['low']:.3g} to {final['high']:.3g} times the base "
            f"(geometric mean {final['mean']:.3g}). The paper has nearly two orders of magnitude "
            "between the cells."
        )

    pair = ("long_weight_decay", "long_foundational")
    if all(name in results for name in pair):
        steps = _curve(results[pair[0]])[0]
        ours, theirs = (_curve(results[name])[1].mean(0) for name in pair)
        early = (steps > 0) & (steps <= 0.8 * steps[-1])
        notes.append(
            f"Behind the foundational surface at {int((ours > theirs)[early].sum())} of "
            f"{int(early.sum())} points of the first 80 % of the run. The paper: at all of them "
            "(12,000 of 15,000 steps)."
        )
        for name, values in zip(pair, (ours, theirs), strict=True):
            late = 100 * (2.0 ** (values[-1] - values.min()) - 1)
            notes.append(
                f"{LABELS[name]}: final perplexity {late:.1f} % above its lowest "
                "(the paper's loses 25 %)."
            )

    forensics = results.get("forensics")
    return notes + (forensic_notes(forensics["rows"]) if forensics else [])


def forensic_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns section 5.5 in numbers, with the differences between runs without the channel."""
    cosine, difference, count = (
        np.mean([row[key] for row in rows])
        for key in ("mean_cosine", "mean_relative_difference", "above_095")
    )
    control_cosine, control_difference = (
        np.mean([row["control"][key] for row in rows])
        for key in ("mean_cosine", "mean_relative_difference")
    )

    roles: dict[str, list[float]] = {}
    entries: list[Mapping[str, Any]] = []
    for name, entry in chain.from_iterable(row["tensors"].items() for row in rows):
        if entry["cosine"] is not None:  # a tensor of zeros has no cosine
            entries.append(entry)
            roles.setdefault(name.rpartition(".")[2], []).append(entry["cosine"])
    means = {role: float(np.mean(values)) for role, values in roles.items()}
    lowest = min(means, key=means.__getitem__)

    def mean(key: str, some: Sequence[Mapping[str, Any]]) -> float:
        return float(np.mean([entry[key] for entry in some]))

    decayed = sorted(entries, key=lambda entry: -entry["choice"])[: max(1, len(entries) // 20)]
    loss, all_loss = (100 * mean("norm_loss", some) for some in (decayed, entries))
    rank, reference_rank = (
        mean(key, entries) for key in ("effective_rank", "reference_effective_rank")
    )
    return [
        f"Final weights against those without the channel: mean cosine {cosine:.2f} (the paper's "
        f"0.88), mean relative difference {difference:.2f} (0.49), {count:.1f} tensors with a "
        "cosine above 0.95 (0). For scale: of two runs without the channel, one with the Sidecar "
        f"and one without, these are {control_cosine:.2f} and {control_difference:.2f}.",
        f"The twentieth of the tensors that are held down most lost {loss:.0f} % of their norm "
        f"(all tensors: {all_loss:.0f} %). The mean effective rank is {rank:.1f} "
        f"({reference_rank:.1f} without the channel). Furthest apart are the `{lowest}` "
        f"projections, mean cosine {means[lowest]:.2f} (the paper's: `down`).",
    ]


def layer_rate_note(results: Mapping[str, Result]) -> str:
    """Returns section 7 in numbers: the ratio of the layers' rates, and the number at the floor."""
    if "layer_lr" not in results:
        return ""
    extra, rates = results["layer_lr"]["extra"], CHANNELS["lr"]
    columns = [place for place, name in enumerate(extra["names"]) if name.startswith("lr/layer.")]
    values = rates.values(np.array(extra["final_mean"])[:, columns])  # (N, L)
    ratio = np.mean(values.max(1) / values.min(1))
    frozen = np.mean((values < 1.05 * rates.bounds[0]).sum(1))
    return (
        f"At the end the highest rate of a layer is {ratio:.2f} times the lowest (mean over seeds; "
        f"the paper has about 3), and {frozen:.1f} of {len(columns)} layers are at the floor (the "
        "paper's first variant drove all there)."
    )


def _known_correlations(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    values = [row["correlations"][key] for row in rows]
    return [value for value in values if value is not None]


def correlation_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns section 5.4: correlations of a tensor's properties with its final weight decay."""
    lines = []
    for key in STATISTICS:
        known = _known_correlations(rows, key)
        mean = f"{np.mean(known):+.2f}" if known else ""
        spread = f"{min(known):+.2f} to {max(known):+.2f}" if known else ""
        paper = PAPER_CORRELATIONS.get(key, "weaker than -0.20")
        lines.append([key.replace("_", " "), mean, spread, paper])
    headers = ["property of the tensor", "r, mean over seeds", "range", "the paper's"]
    return markdown_table(headers, lines)


def _curve(result: Result) -> tuple[np.ndarray, np.ndarray]:
    """Returns steps (P,) and held-out bits per byte (rows, P) of the rows that did not diverge."""
    rows = [row for row in result["rows"] if row["divergence_reason"] is None] or result["rows"]
    values = [[8.0 if value is None else value for value in row["bpb_curve"]] for row in rows]
    return np.array(rows[0]["steps"]), np.array(values, dtype=np.float64)


def draw_trajectories(file: Path, result: Result, channel: str) -> bool:
    """Draws the values of a channel's cells of the first seed, a panel per kind of tensor."""
    means = np.array(result["extra"]["trace"]["mean"])[:, 0]  # (K, A)
    panels: dict[str, dict[str, np.ndarray]] = {}
    for column, name in enumerate(result["extra"]["names"]):
        kind, _, cell = name.partition("/layer.")
        if kind == channel and cell:
            layer, _, tensor = cell.partition(".")
            panel = panels.setdefault(tensor or "all tensors of a layer", {})
            panel[f"layer {layer}"] = CHANNELS[channel].values(means[:, column])
    if panels:
        quantity = channel.replace("_", " ").replace("lr", "rate")
        steps = result["extra"]["trace"]["steps"]
        figures.cell_trajectories(file, steps, panels, f"multiplier of the base {quantity}")
    return bool(panels)


def draw_correlations(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws the final weight decay of each tensor over its properties (Figure 4)."""
    entries = list(chain.from_iterable(row["tensors"].values() for row in rows))
    clouds = {}
    for key in STATISTICS:
        known = _known_correlations(rows, key)
        title = key.replace("_", " ") + (f", mean r = {np.mean(known):+.2f}" if known else "")
        clouds[title] = ([e[key] for e in entries], [e["choice"] for e in entries])
    figures.scatter_panels(file, clouds, "final position of the weight decay")


def draw_signal(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws the signal to noise of each reward, a line per channel and state."""
    labels = {place: "{}, step {}".format(*place) for place in sorted({_place(r) for r in rows})}
    known = {(row["reward"], _place(row)): row["snr"] for row in rows}
    series: dict[str, dict[str, float | None]] = {}
    for reward in dict.fromkeys(row["reward"] for row in rows):
        series[reward] = {text: known.get((reward, place)) for place, text in labels.items()}
    figures.logarithmic_dots(file, series, "signal to noise of one step")


def _place(row: Mapping[str, Any]) -> tuple[str, int]:
    return row["channel"], row["step"]


def report(folder: Path) -> None:
    """Writes README.md, summary.json and the figures from the job files in `folder`/jobs."""
    results = claims.load_results(folder / "jobs")
    if not results:
        print(f"no report yet: no results in {folder / 'jobs'}")
        return
    summary, first = claims.summarize(results), next(iter(results.values()))

    def arms(comparison: str) -> str:
        shown: set[str] = set()
        for other in COMPARISONS:
            if other == comparison:
                break
            shown.update(COMPARISONS[other].arms)
        is_new = any(n in results and n not in shown for n in COMPARISONS[comparison].arms)
        return arm_table(comparison, summary) if is_new else ""

    def curves(comparison: str) -> str:
        names = [name for name in COMPARISONS[comparison].arms if name in results]
        if len(names) < 2 or not arms(comparison):
            return ""
        file = f"figure3_{comparison}.png"
        drawn = {LABELS[name]: _curve(results[name]) for name in names}
        figures.training_dynamics(folder / file, drawn, "held-out bits per byte")
        return f"![{comparison}_curves]({file})"

    def trajectories(name: str) -> str:
        channel, file = TRAJECTORIES[name]
        is_there = name in results and draw_trajectories(folder / file, results[name], channel)
        return f"![{name}]({file})" if is_there else ""

    def sweep(name: str) -> str:
        if name not in results:
            return ""
        tried, spent = engine.tried_table(results[name], engine.SWEPT), results[name]["extra"]
        return f"{tried}\n\nRuns spent on the choice: {spent['runs_spent']}."

    def rewards() -> str:
        names = [name for name in COMPARISONS["rewards"].arms if name in summary]
        names = [name for name in names if summary[name]["interval"]]
        if not names:
            return ""
        engine.draw_comparison(folder / "rewards.png", summary, names, LABELS.__getitem__)
        return "![rewards](rewards.png)"

    def correlations() -> str:
        if "forensics" not in results:
            return ""
        rows = results["forensics"]["rows"]
        draw_correlations(folder / "figure4_correlations.png", rows)
        return f"{correlation_table(rows)}\n\n![forensics](figure4_correlations.png)"

    def signal() -> str:
        if "signal" not in results:
            return ""
        draw_signal(folder / "signal.png", results["signal"]["rows"])
        return f"![signal](signal.png)\n\n{signal_table(results['signal'])}"

    parts: dict[str, engine.Part] = {
        "command": lambda: engine.command(first),
        "commits": lambda: engine.commits(results),
        "corpus": lambda: str(first["facts"]["corpus"]),
        "claims": lambda: claim_table(results),
        "arms": arms,
        "curves": curves,
        "layer_rates": lambda: layer_rate_note(results),
        "trajectories": trajectories,
        "sweep": sweep,
        "rewards": rewards,
        "weight_decay": lambda: "\n".join(f"- {note}" for note in weight_decay_notes(results)),
        "correlations": correlations,
        "signal": signal,
        "prices": lambda: price_table(summary),
    }
    engine.write_report(folder, TEMPLATE, parts, summary)
    print(claim_table(results))
