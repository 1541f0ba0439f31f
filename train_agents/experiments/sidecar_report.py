"""Parts of `results/sidecar/template.md`: tables and figures of the Sidecar's experiments.

Every table has bits per byte and perplexity, so that they are not confused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from hpenv.control.channels import CHANNELS
from train_agents import figures
from train_agents.experiments import report as engine
from train_agents.experiments.measures.weights import STATISTICS
from train_agents.experiments.report import Cell, Data, number
from train_agents.experiments.samples import Result, Row, Scores, bpb_arms
from train_agents.experiments.sidecar_claims import (
    CLAIMS,
    COMPARISONS,
    UNITS,
    Claim,
    below_at,
    in_both_units,
    verdict,
)

#: Correlations of a tensor's properties with its final weight decay, in the paper (section 5.4).
PAPER_CORRELATIONS = {"frobenius_norm": "-0.20", "std": "-0.04"}


def arms(jobs: Mapping[str, Result]) -> dict[str, Scores]:
    """Returns the bits per byte and perplexity of every arm."""
    return {name: in_both_units(bits) for name, bits in bpb_arms(jobs).items()}


def summarize(data: Data) -> dict[str, dict[str, Any]]:
    """Returns each arm's bits per byte, perplexity, differences from its references and cost."""
    return {name: _entry(data, name) for name in data.known if name in data.arms}


def _entry(data: Data, name: str) -> dict[str, Any]:
    bpb, perplexity, extra = *data.arms[name].values(), data.extra(name)
    tables = [table for group, table in COMPARISONS.items() if name in _shown(data, group)]
    others = set(chain.from_iterable(table.references for table in tables)) & set(data.arms)
    return {
        "seeds": list(bpb.seeds),
        "bpb": bpb.mean,
        "perplexity": perplexity.mean,
        "interval": bpb.estimate()[1:] or None,
        "diverged": data.divergences(name),
        "versus": {
            other: {unit: data.below(name, other, unit) for unit in UNITS}
            for other in sorted(others - {name})
        },
        **{key: extra.get(key) for key in ("agent_ms", "env_ms", "advantage_rms", "evidence")},
        "rates": final_values(extra, "lr"),
    }


def _shown(data: Data, group: str) -> list[str]:
    """Returns the arms with a result in a comparison, empty if none is of its own group."""
    own, comparison = data.of_group(group), COMPARISONS[group]
    every = (*comparison.before, *own, *comparison.after)
    return [name for name in every if name in data.arms] if own else []


def final_values(extra: Mapping[str, Any], channel: str) -> dict[str, float] | None:
    """Returns geometric mean and ends of a channel's final values, None without it."""
    names = extra.get("names", [])
    columns = [column for column, name in enumerate(names) if name.split("/")[0] == channel]
    if not columns:
        return None
    values = CHANNELS[channel].values(np.array(extra["final_mean"])[:, columns])
    mean = float(np.exp(np.log(values).mean()))
    return {"mean": mean, "low": float(values.min()), "high": float(values.max())}


_percent = partial(engine.interval_text, form="+.2f", alone=" (one seed)")


def claim_table(data: Data) -> str:
    """Returns the paper's claims next to what was measured."""

    def statement(claim: Claim) -> str:
        return claim.direction if claim.number is None else f"{100 * claim.number:+.1f} %"

    def gap(claim: Claim, unit: str = "perplexity") -> list[float]:
        return below_at(data, claim.arm, claim.reference, unit, claim.step)

    columns = [
        ("claim (section)", lambda claim: claim.text),
        ("the paper's", statement),
        ("measured, perplexity", lambda claim: _percent(gap(claim))),
        ("measured, bits per byte", lambda claim: _percent(gap(claim, "bpb"))),
        ("supported", lambda claim: verdict(gap(claim), claim)),
    ]
    return engine.table(CLAIMS, columns)


def arm_table(data: Data, group: str) -> str:
    """Returns the arms of a comparison, and how far each lies below its references."""

    def below(reference: str, unit: str) -> Cell:
        return lambda arm: "" if arm == reference else _percent(data.below(arm, reference, unit))

    columns = [
        ("arm", data.label),
        engine.bpb_column(data),
        ("perplexity per byte", lambda arm: f"{data.arms[arm]['perplexity'].mean:.3f}"),
    ]
    for reference in COMPARISONS[group].references:
        if reference in data.arms:
            columns.append((f"below {reference}: bits", below(reference, "bpb")))
            columns.append(("perplexity", below(reference, "perplexity")))
    columns.append(("diverged", lambda arm: str(data.divergences(arm))))
    return engine.table(_shown(data, group), columns)


def sweep_table(data: Data, name: str) -> str:
    """Returns what a sweep tried."""
    if name not in data.jobs:
        return ""
    spent = f"Runs spent on the choice: {data.extra(name)['runs_spent']}."
    return f"{engine.tried_table(data.jobs[name])}\n\n{spent}"


def price_table(data: Data) -> str:
    """Returns the cost of a decision, and the final learning rates."""

    def cost(key: str, form: str) -> Cell:
        return lambda arm: number(data.extra(arm).get(key), form)

    def rates(arm: str) -> str:
        found = final_values(data.extra(arm), "lr")
        return "{mean:.2f} ({low:.2f} to {high:.2f})".format(**found) if found else ""

    columns = [
        ("arm", lambda arm: f"`{arm}`"),
        ("runs [ms per decision]", cost("env_ms", ".1f")),
        ("sidecars [ms per decision]", cost("agent_ms", ".1f")),
        ("noise of an advantage, RMS [reward]", cost("advantage_rms", ".3g")),
        ("evidence at the end", cost("evidence", ".3g")),
        ("final rate multipliers, mean (range)", rates),
    ]
    names = [name for name in data.known if data.extra(name).get("env_ms") is not None]
    return engine.table(names, columns)


def signal_table(data: Data) -> str:
    """Returns signal and noise of each reward, at each state."""
    columns: engine.Columns = [
        ("step", "{step}".format_map),
        ("channel (cells)", "`{channel}` ({cells})".format_map),
        ("reward", "{reward}".format_map),
        (
            "effect per sigma ± standard error [nats]",
            "{effect:.1e} ± {standard_error:.0e}".format_map,
        ),
        ("noise [nats]", "{noise:.2e}".format_map),
        ("signal to noise", lambda row: number(row["snr"], ".1e") or "not told from zero"),
        ("steps to know its sign", lambda row: number(row["steps_to_know"], ".1e")),
    ]
    return engine.table(data.rows("signal"), columns)


def values(data: Data) -> dict[str, Any]:
    """Returns the numbers of the page's sentences, as far as they were measured."""
    found: dict[str, Any] = {}
    for key, value in (final_values(data.extra("long_weight_decay"), "weight_decay") or {}).items():
        found[f"long_weight_decay.{key}"] = value
    if "layer_lr" in data.arms:
        found |= _layer_rates(data.extra("layer_lr"))

    pair = ("long_weight_decay", "long_foundational")
    if all(name in data.arms for name in pair):
        (steps, ours), (_, theirs) = (_curve(data, name) for name in pair)
        means = (ours.mean(0), theirs.mean(0))
        early = (steps > 0) & (steps <= 0.8 * steps[-1])
        found |= {"points_behind": (means[0] > means[1])[early].sum(), "points": early.sum()}
        for name, mean in zip(pair, means, strict=True):
            found[f"{name}.rise"] = 100 * (2.0 ** (mean[-1] - mean.min()) - 1)
    rows = data.rows("forensics")
    return found | (forensics(rows) if rows else {})


def _layer_rates(extra: Mapping[str, Any]) -> dict[str, float]:
    """Returns section 7 in numbers: the ratio of the layers' rates, and the number at the floor."""
    rates = CHANNELS["lr"]
    columns = [place for place, name in enumerate(extra["names"]) if name.startswith("lr/layer.")]
    values = rates.values(np.array(extra["final_mean"])[:, columns])  # (N, L)
    frozen = (values < 1.05 * rates.bounds[0]).sum(1)
    ratio = np.mean(values.max(1) / values.min(1))
    return {"layer_ratio": ratio, "layers_frozen": np.mean(frozen), "layers": len(columns)}


def forensics(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns section 5.5 in numbers, with the differences between runs without the channel."""
    found: dict[str, Any] = {"above_095": np.mean([row["above_095"] for row in rows])}
    for key in ("mean_cosine", "mean_relative_difference"):
        found[key] = np.mean([row[key] for row in rows])
        found[f"control.{key}"] = np.mean([row["control"][key] for row in rows])

    roles: dict[str, list[float]] = {}
    entries: list[Mapping[str, Any]] = []
    for name, entry in chain.from_iterable(row["tensors"].items() for row in rows):
        if entry["cosine"] is not None:  # a tensor of zeros has no cosine
            entries.append(entry)
            roles.setdefault(name.rpartition(".")[2], []).append(entry["cosine"])
    cosine, role = min((np.mean(cosines), role) for role, cosines in roles.items())
    found |= {"furthest": role, "furthest.cosine": cosine}

    decayed = sorted(entries, key=lambda entry: -entry["choice"])[: max(1, len(entries) // 20)]
    for key, some in (("decayed.norm_loss", decayed), ("norm_loss", entries)):
        found[key] = 100 * np.mean([entry["norm_loss"] for entry in some])
    for key in ("effective_rank", "reference_effective_rank"):
        found[key] = np.mean([entry[key] for entry in entries])
    return found


def _correlations(data: Data) -> dict[str, list[float]]:
    """Returns the known correlations of the seeds for each property of a tensor."""
    every = [row["correlations"] for row in data.rows("forensics")]
    return {key: [row[key] for row in every if row[key] is not None] for key in STATISTICS}


def correlation_table(data: Data) -> str:
    """Returns section 5.4: correlations of a tensor's properties with its final weight decay."""
    known = _correlations(data)
    columns: engine.Columns = [
        ("property of the tensor", lambda key: key.replace("_", " ")),
        ("r, mean over seeds", lambda key: f"{np.mean(known[key]):+.2f}"),
        ("range", lambda key: f"{min(known[key]):+.2f} to {max(known[key]):+.2f}"),
        ("the paper's", lambda key: PAPER_CORRELATIONS.get(key, "weaker than -0.20")),
    ]
    return engine.table([key for key in STATISTICS if known[key]], columns)


def _curve(data: Data, arm: str) -> figures.Curve:
    """Returns steps (P,) and held-out bits per byte (rows, P) of the rows that did not diverge."""
    every = data.rows(arm)
    rows = [row for row in every if row["divergence_reason"] is None] or every
    values = [[8.0 if value is None else value for value in row["bpb_curve"]] for row in rows]
    return np.array(rows[0]["steps"]), np.array(values, dtype=np.float64)


def curves(group: str, data: Data) -> dict[str, figures.Curve]:
    """Returns the held-out bits per byte over the steps of a comparison's arms."""
    names = _shown(data, group)
    return {data.label(name): _curve(data, name) for name in names} if len(names) > 1 else {}


def reward_bars(data: Data) -> list[tuple[str, float, float, float]]:
    """Returns the held-out bits per byte of the arms of the rewards, if they have intervals."""
    names = data.of_group("rewards")
    return engine.bpb_bars(data, [n for n in names if len(data.arms[n]["bpb"].seeds) > 1])


def trajectories(arm: str, channel: str, data: Data) -> dict[str, dict[str, figures.Curve]]:
    """Returns the values of a channel's cells of the first seed, a panel per kind of tensor."""
    extra = data.extra(arm)
    panels: dict[str, dict[str, figures.Curve]] = {}
    for column, name in enumerate(extra.get("names", [])):
        kind, _, cell = name.partition("/layer.")
        if kind == channel and cell:
            layer, _, tensor = cell.partition(".")
            means = np.array(extra["trace"]["mean"])[:, 0, column]  # (K,)
            panel = panels.setdefault(tensor or "all tensors of a layer", {})
            panel[f"layer {layer}"] = (extra["trace"]["steps"], CHANNELS[channel].values(means))
    return panels


def correlation_clouds(data: Data) -> dict[str, figures.Curve]:
    """Returns the final weight decay of each tensor over its properties (Figure 4)."""
    tensors = (row["tensors"].values() for row in data.rows("forensics"))
    entries = list(chain.from_iterable(tensors))
    clouds = {}
    for key, known in _correlations(data).items():
        title = key.replace("_", " ") + (f", mean r = {np.mean(known):+.2f}" if known else "")
        clouds[title] = ([e[key] for e in entries], [e["choice"] for e in entries])
    return clouds if entries else {}


def signals(data: Data) -> dict[str, dict[str, float | None]]:
    """Returns the signal to noise of each reward, for each channel and state."""
    rows = data.rows("signal")
    places = sorted({(row["channel"], row["step"]) for row in rows})
    labels = [f"{channel}, step {step}" for channel, step in places]
    series: dict[str, dict[str, float | None]] = {}
    for row in rows:
        entry = series.setdefault(row["reward"], dict.fromkeys(labels))
        entry[f"{row['channel']}, step {row['step']}"] = row["snr"]
    return series


_draw_curves = partial(figures.curves, xlabel="training step", ylabel="held-out bits per byte")


def _draw_trajectories(quantity: str) -> partial[None]:
    return partial(figures.line_panels, ylabel=f"multiplier of the base {quantity}", is_ratio=True)


FIGURES: dict[str, engine.Figure] = {
    **{f"figure3_{group}": (partial(curves, group), _draw_curves) for group in COMPARISONS},
    "figure2_weight_decay": (
        partial(trajectories, "long_weight_decay", "weight_decay"),
        _draw_trajectories("weight decay"),
    ),
    "figure5_layer_lr": (partial(trajectories, "layer_lr", "lr"), _draw_trajectories("rate")),
    "rewards": (reward_bars, partial(figures.comparison_bars, xlabel="held-out bits per byte")),
    "figure4_correlations": (
        correlation_clouds,
        partial(figures.scatter_panels, ylabel="final position of the weight decay"),
    ),
    "signal": (signals, partial(figures.logarithmic_dots, xlabel="signal to noise of one step")),
}
PARTS: dict[str, engine.Part] = {
    "claims": claim_table,
    "arms": arm_table,
    "sweep": sweep_table,
    "correlations": correlation_table,
    "signal": signal_table,
    "prices": price_table,
}
