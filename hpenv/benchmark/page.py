"""The page of a board: one HTML file that needs no other file, no network and no script.

The page is a pure function of the board and its rows, so that the same rows give the same bytes.

The module is longer than usual because it has a function for each section.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from hpenv.benchmark.board import HIGHEST, LOWEST, SIGNIFICANCE, Board
from hpenv.benchmark.curves import Curves, curves_of
from hpenv.benchmark.drawings import Line, Point, cost_chart, line_chart, style_of, swatch
from hpenv.benchmark.markup import element, plain
from hpenv.benchmark.methods import OFF
from hpenv.benchmark.rows import line_of
from hpenv.benchmark.tables import (
    color_legend,
    heat_map,
    missing_runs,
    ranks,
    standings_markdown,
    standings_table,
)

#: Length that a page may have [bytes]. All rows are in it if they fit.
MOST_BYTES = 300_000
#: Scores at which the performance profile is drawn.
THRESHOLDS = np.linspace(LOWEST, HIGHEST, 101)
#: The loss that a learning curve has after this fraction of the run is the top of its chart.
SHOWN_FROM = 0.25
#: Significant digits of a held-out score in the compact rows.
DIGITS = 8

#: Words below the table.
LEGEND = (
    "Score: 0 is off, 1 is the tuned reference. Beside a mark are the p value before correction "
    "and the probability of improvement. Overhead of a step is over that of off, with the noise of "
    "a shared machine; ? is not measured. A rank needs 5 seeds."
)

Rows = Sequence[Mapping[str, Any]]


def markdown_board(board: Board) -> str:
    """Returns the standings as a Markdown table, with the unfinished methods below it."""
    lines = [standings_markdown(board), "", LEGEND]
    if board.unfinished:
        lines += ["", f"Unfinished: {', '.join(board.unfinished)}."]
    return "\n".join(lines)


def html_board(board: Board, rows: Rows) -> str:
    """Returns the page of a board as one HTML file, below 300 kB for 3,000 runs.

    Args:
        board: the board.
        rows: its rows, as `read_rows` returns them. Their order has no effect, and those of other
            suites, instances and seeds are left out.
    """
    rows = _rows_of(board, rows)
    unit = _unit(rows)
    curves = curves_of(rows, board.instances, [each.method for each in board.standings])
    sections = [
        _header(board),
        _standings(board, rows),
        element("div", _costs(board), _profile(board), class_="pair"),
        _instances(board, unit),
        _curves(board, curves),
    ]

    start, end = _frame(board, curves)
    size = len((start + "".join(sections) + end).encode())
    return start + "\n".join([*sections, _downloads(board, rows, size)]) + end


def _rows_of(board: Board, rows: Rows) -> Rows:
    """Returns the rows of a board's suite, instances and seeds, sorted."""
    seeds = {}
    for name in board.instances:
        instance = board.suite.instance(name)
        seeds[instance.digest] = board.suite.seeds(instance)[: board.num_seeds]
    kept = [
        row
        for row in rows
        if row["suite"] == board.suite.name and row["seed"] in seeds.get(row["instance_digest"], [])
    ]
    return sorted(kept, key=lambda row: (row["method"], row["instance"], row["seed"]))


def _frame(board: Board, curves: Curves) -> tuple[str, str]:
    """Returns what stands before and after the content of the page."""
    style, script = (
        Path(__file__).with_name(name).read_text(encoding="utf-8")
        for name in ("page.css", "page.js")
    )
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {_hash(style)}; script-src {_hash(script)}"
    )
    head = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", plain(f"{board.suite.name}: board of controllers")),
        element("link", rel="icon", href="data:,"),
        element("style", style),
    ]
    start = f'<!DOCTYPE html>\n<html lang="en">{element("head", *head)}\n<body><main>\n'
    data = element("script", curves.text(), type="application/json", id="curves-data")
    return start, f"\n</main>{data}\n{element('script', script)}</body></html>\n"


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _unit(rows: Rows) -> str:
    keys = {row["score"] for row in rows}
    return "bits per byte" if keys == {"bpb"} else ", ".join(sorted(keys)) or "score"


def _header(board: Board) -> str:
    suite = board.suite
    facts = [("runs", f"{len(board.instances)} instances × {board.num_seeds} seeds per method")]
    facts += [(name.replace("_", " "), _fact(board.facts[name])) for name in sorted(board.facts)]
    facts += [("made by", f"python -m hpenv.benchmark board --suite {suite.name}")]
    items = [element("dt", plain(k)) + element("dd", plain(v)) for k, v in facts]
    low = f"{LOWEST:g}".replace("-", "−")
    score = (
        "A run's score is (<i>b</i><sub>off</sub> − <i>b</i>) / (<i>b</i><sub>off</sub> − "
        "<i>b</i><sub>ref</sub>), where <i>b</i> is its held-out loss at the end, "
        "<i>b</i><sub>off</sub> that of the same seed without a controller, and "
        "<i>b</i><sub>ref</sub> that of the instance's tuned reference: 0 is off, and 1 is the "
        "reference. A method's score is the interquartile mean over all runs, each limited to "
        f"{low} and {HIGHEST:g}, and a diverged run counts {low}."
    )
    links = {
        "standings": "Standings",
        "costs": "Cost",
        "profile": "Profile",
        "instances": "Instances",
        "curves": "Curves",
        "rows": "Rows",
    }
    return element(
        "header",
        element("p", "Board of controllers", class_="kind"),
        element("h1", plain(suite.name)),
        element("p", plain(suite.about), class_="about"),
        element("p", score),
        element("dl", *items),
        element(
            "nav",
            *(element("a", text, href=f"#{name}") for name, text in links.items()),
            aria_label="Parts of the page",
        ),
    )


def _fact(values: Sequence[Any]) -> str:
    texts = []
    for value in values:
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in sorted(value.items()) if v is not None)
        texts.append("unknown" if value is None else str(value))
    return "; ".join(texts)


def _section(name: str, title: str, *content: str) -> str:
    heading = element("h2", plain(title), id=f"{name}-title")
    return element("section", heading, *content, id=name, aria_labelledby=f"{name}-title")


def _scroll(content: str, label: str) -> str:
    """Returns a box that scrolls its content sideways, also with the keyboard."""
    return element("div", content, class_="scroll", tabindex=0, role="region", aria_label=label)


def _standings(board: Board, rows: Rows) -> str:
    notes = [
        "Rows go from the lowest to the highest score. A tick says that the method is better at "
        f"p < {SIGNIFICANCE:g} after Holm's correction over the methods. After it come the p-value "
        "before the correction, and the probability that a run of the method is better. Against "
        "off the test has one side. Against the row above it has two, because the scores decide "
        "which of the two stands above. The thin marks of a bar are the scores 0 and 1. A question "
        "mark is an unknown cost."
    ]
    reason = ranks(board)[1]
    if reason:
        notes.insert(0, f"There are no ranks: {reason}.")
    parts = [_scroll(standings_table(board), "Standings")]
    parts += [element("p", plain(note), class_="note") for note in notes]

    if board.unfinished:
        missing = missing_runs(board, rows)
        items = [
            element("li", element("b", plain(name)), plain(f": {text}"))
            for name, text in missing.items()
        ]
        parts += [element("h3", "Unfinished"), element("ul", *items, class_="unfinished")]
    return _section("standings", "Standings", *parts)


def _style(board: Board, index: int) -> str:
    return style_of(index, board.standings[index].method == OFF)


def _legend(board: Board) -> str:
    items = [
        element("li", swatch(_style(board, m)), plain(standing.method), data_m=standing.method)
        for m, standing in enumerate(board.standings)
    ]
    return element("ul", *items, class_="legend", aria_label="Methods")


def _costs(board: Board) -> str:
    points, unknown = [], []
    for m, standing in enumerate(board.standings):
        costs = [standing.costs.get(name) for name in ("meta_training", "tuning")]
        if None in costs:
            unknown.append(standing.method)
            continue
        total = sum(cost for cost in costs if cost is not None)
        points.append(Point(standing.method, _style(board, m), total, standing.score))

    title = "Score against cost"
    about = (
        "The cost is meta-training plus tuning on one instance, in runs of an instance by tokens. "
        "Bars are 95 % intervals."
    )
    parts = [element("p", about, class_="note")]
    if points:
        best = max(points, key=lambda point: point.score.mean)
        description = f"{best.method} has the highest score, at a cost of {best.cost:g} runs."
        parts.insert(0, cost_chart(points, title, description, "cost [runs], logarithmic"))
    if unknown:
        parts.append(element("p", plain(f"Of unknown cost: {', '.join(unknown)}."), class_="note"))
    return _section("costs", title, *parts)


def _profile(board: Board) -> str:
    lines = []
    for m, standing in enumerate(board.standings):
        scores = standing.scores.reshape(-1)
        above = (scores[None, :] > THRESHOLDS[:, None]).mean(axis=1)
        lines.append(Line(standing.method, _style(board, m), THRESHOLDS, above))

    title = "Performance profile"
    description = "Fraction of a method's runs whose score is above a threshold."
    chart = line_chart(lines, title, description, ("score", "fraction of runs above"), (0.0, 1.0))
    note = element("p", f"{description} A higher line is better.", class_="note")
    return _section("profile", title, chart, _legend(board), note)


def _instances(board: Board, unit: str) -> str:
    note = (
        "A cell is the mean score over the seeds. Its title has the mean held-out score "
        f"({unit}) with a 95 % interval over the seeds. Italic: nearer to 0 than the smallest "
        "difference that a test of this size detects with a power of 80 %. †n: n runs diverged."
    )
    table = _scroll(heat_map(board, unit), "Scores by instance and method")
    parts = [color_legend(), table, element("p", plain(note), class_="note")]
    return _section("instances", "Instances and methods", *parts)


def _curves(board: Board, curves: Curves) -> str:
    title = "Learning curves and panel"
    name = board.instances[0]
    probe = {m: curve for (i, m), curve in curves.probe.items() if i == 0}
    channel = curves.channels[0] if curves.channels else ""
    panel = {
        m: cell[channel] for (i, m), cell in curves.panel.items() if i == 0 and channel in cell
    }
    losses = _cell_chart(board, curves, probe, "probe loss", "curve-chart")
    traces = _cell_chart(board, curves, panel, channel, "trace-chart")

    choosers = element("div", id="choosers", hidden=True)
    note = (
        "A line is the mean over the runs that have not diverged. The probe loss is the loss on "
        f"the batches that a controller may see. Curves have {curves.num_points} points here."
    )
    if curves.traces_left_out:
        note += (
            f" {curves.traces_left_out} traces are left out to keep the page small. Of each cell, "
            "the page has the traces that move most."
        )
    return _section(
        "curves",
        title,
        element("p", plain(f"Instance {name}, channel {channel or 'none'}, all methods"),
                id="chosen"),
        choosers,
        element("div", losses, traces, class_="pair"),
        element("p", id="readout", class_="note"),
        _legend(board),
        element("p", plain(note), class_="note"),
    )  # fmt: skip


def _cell_chart(
    board: Board, curves: Curves, found: Mapping[int, Any], label: str, name: str
) -> str:
    """Returns the chart of the first instance's curves, or a sentence if there are none."""
    found = {m: curve for m, curve in found.items() if np.isfinite(curve).any()}
    if not found:
        return element("p", plain(f"These rows have no {label or 'panel'} of this instance."))

    x = np.linspace(0.0, curves.steps[0], curves.num_points)
    lines = [Line(board.standings[m].method, _style(board, m), x, y) for m, y in found.items()]
    description = f"Mean {label} of {len(lines)} methods against the step."
    top = None
    if name == "curve-chart":
        top = probe_range([line.y for line in lines])
    return line_chart(lines, label, description, ("step", label), top, name)


def probe_range(curves: Sequence[Any]) -> tuple[float, float]:
    """Returns the ends of the vertical axis of learning curves, without their first steep part."""
    values = np.stack(curves)
    late = values[:, round(SHOWN_FROM * (values.shape[1] - 1)) :]
    chosen = late if np.isfinite(late).any() else values
    low, high = float(np.nanmin(chosen)), float(np.nanmax(chosen))
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _downloads(board: Board, rows: Rows, size: int) -> str:
    full = _lines(rows, (MOST_BYTES - size - 2_000) * 3 // 4)
    if full is not None:
        address = f"data:application/jsonl;base64,{base64.b64encode(full).decode()}"
        text = "All rows of the board with their curves, one JSON object per line."
        file = f"{board.suite.name}.jsonl"
    else:
        address = f"data:text/csv;charset=utf-8,{quote(compact_rows(rows), safe=',.')}"
        text = (
            "Held-out scores at the end, one line per instance and seed, one column per method. A "
            "diverged run has its reason instead of a score. The rows with their curves are too "
            f"long for this page. Scores have {DIGITS} digits."
        )
        file = f"{board.suite.name}.csv"
    link = element("a", plain(file), href=address, download=file)
    return _section("rows", "Rows", element("p", link, plain(f": {text}")))


def _lines(rows: Rows, room: int) -> bytes | None:
    """Returns rows as JSON lines, or None if they are longer than a number of bytes."""
    lines: list[bytes] = []
    for row in rows:
        lines.append(line_of(row).encode())
        room -= len(lines[-1])
        if room < 0:
            return None
    return b"".join(lines)


def compact_rows(rows: Rows) -> str:
    """Returns the held-out score of every row as CSV: instance, seed, then one column per method.

    A diverged run has its reason instead of a score.
    """
    methods = sorted({row["method"] for row in rows})
    lines: dict[tuple[str, int], dict[str, str]] = {}
    for row in rows:
        final = "" if row["final"] is None else f"{row['final']:.{DIGITS}g}"
        values = lines.setdefault((row["instance"], row["seed"]), {})
        values[row["method"]] = row["divergence_reason"] or final

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["instance", "seed", *methods])
    for key in sorted(lines):
        writer.writerow([*key, *(lines[key].get(method, "") for method in methods)])
    return text.getvalue()
