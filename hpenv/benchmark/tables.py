"""Tables of the page: the standings, and the heat map of instances and methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hpenv.benchmark.board import HIGHEST, LOWEST, Board, Standing
from hpenv.benchmark.comparisons import PairedComparison
from hpenv.benchmark.drawings import interval_bar, style_of, swatch
from hpenv.benchmark.markup import element, plain
from hpenv.benchmark.methods import OFF
from hpenv.benchmark.results import markdown_table
from hpenv.benchmark.statistics import Interval, mean_interval
from hpenv.plot import Axis

#: Width of a color of the heat map [score]. Color 0 is around the score 0.
COLOR_WIDTH = 0.25
#: Headers of the standings, and what each says, for the titles of the page's headers.
HEADERS = {
    "rank": "1 is the best",
    "method": "the controller's name",
    "score [95 %]": "interquartile mean of the scores of all runs, with its 95 % interval",
    "better than off": "paired comparison with the run without a controller",
    "better than the row above": "paired comparison with the method one row above",
    "optimality gap": "mean of how far the scores lie below 1, lower is better",
    "diverged": "runs that diverged",
    "meta-training [runs]": "training of the controller, in runs of an instance by tokens",
    "tuning [runs]": "tuning on each instance, in runs of that instance by tokens",
    "overhead": "time of a run over the time of off, less 1",
}
#: Headers above numbers.
NUMERIC = frozenset(HEADERS) - {"method", "score [95 %]", *list(HEADERS)[3:5]}
NOTHING = "–"


def number(value: float | None, digits: int = 2) -> str:
    """Returns a number with a true minus sign, or a dash if there is none."""
    if value is None or not math.isfinite(value):
        return NOTHING
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if not text.strip("-0.") else text.replace("-", "−")


def interval_text(interval: Interval, digits: int = 2) -> str:
    """Returns the ends of an interval in brackets."""
    return f"[{number(interval.low, digits)}, {number(interval.high, digits)}]"


def runs_text(cost: float | None) -> str:
    """Returns a cost in runs with three digits, or a question mark if it is unknown."""
    if cost is None:
        return "?"
    return f"{cost:,.0f}" if cost >= 100.0 else f"{cost:.3g}"


def overhead_text(overhead: float | None) -> str:
    """Returns an overhead in percent with its sign."""
    return "?" if overhead is None else f"{100.0 * overhead:+.1f} %".replace("-", "−")


def ranks(board: Board) -> tuple[list[int | None], str]:
    """Returns the rank of every standing, and the reason if there are none."""
    try:
        return [board.rank(standing.method) for standing in board.standings], ""
    except ValueError as error:
        return [None] * len(board.standings), str(error)


def missing_runs(board: Board, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns, for every unfinished method, a sentence on the runs that it lacks."""
    found = {}
    for entry in board.unfinished:
        method = entry.rpartition(" (")[0] or entry  # the board adds the number of rows
        lacking = {}
        for name in board.instances:
            seeds = {
                row["seed"] for row in rows if (row["method"], row["instance"]) == (method, name)
            }
            if len(seeds) < board.num_seeds:
                lacking[name] = board.num_seeds - len(seeds)
        total = board.num_seeds * len(board.instances)
        places = ", ".join(f"{name} ({count})" for name, count in lacking.items())
        found[method] = f"{sum(lacking.values())} of {total} runs are missing: {places}"
    return found


def standings_markdown(board: Board) -> str:
    """Returns the standings as a Markdown table."""
    lines = []
    for standing, rank in zip(board.standings, ranks(board)[0], strict=True):
        lines.append(
            [
                NOTHING if rank is None else rank,
                standing.method,
                f"{number(standing.score.mean)} {interval_text(standing.score)}",
                _verdict(standing.against_off, standing.better_than_off, 1),
                _verdict(standing.against_above, standing.better_than_above, 2),
                number(standing.optimality_gap.mean),
                standing.diverged,
                runs_text(standing.costs.get("meta_training")),
                runs_text(standing.costs.get("tuning")),
                overhead_text(standing.costs.get("overhead")),
            ]
        )
    return markdown_table(list(HEADERS), lines)


def _verdict(comparison: PairedComparison | None, is_better: bool, sides: int) -> str:
    if comparison is None:
        return NOTHING
    return f"{'✓' if is_better else '✗'} {_evidence(comparison, sides)}"


def _evidence(comparison: PairedComparison, sides: int) -> str:
    """Returns the p-value of a test with one or two sides, and the probability of improvement."""
    p = min(1.0, sides * comparison.p_value)
    chance = f"{100.0 * comparison.probability_of_improvement:.0f} %"
    return f"{'p < 0.001' if p < 0.001 else f'p = {p:.3f}'}, {chance}"


def standings_table(board: Board) -> str:
    """Returns the standings as an HTML table."""
    scores = [standing.score for standing in board.standings]
    ends = [score.low for score in scores] + [score.high for score in scores]
    axis = Axis(max(min([*ends, 0.0]), LOWEST), min(max([*ends, 1.0]), HIGHEST))

    body, above = [], ""
    for index, (standing, rank) in enumerate(zip(board.standings, ranks(board)[0], strict=True)):
        cells = [
            _cell(NOTHING if rank is None else str(rank), -1 if rank is None else rank),
            _method_header(standing.method, index),
            _score_cell(standing, axis),
            _comparison_cell(standing.against_off, standing.better_than_off, OFF, 1),
            _comparison_cell(standing.against_above, standing.better_than_above, above, 2),
            _cell(
                number(standing.optimality_gap.mean),
                standing.optimality_gap.mean,
                title=interval_text(standing.optimality_gap),
            ),
            _cell(str(standing.diverged), standing.diverged),
            _cost_cell(standing, "meta_training", runs_text),
            _cost_cell(standing, "tuning", runs_text),
            _cost_cell(standing, "overhead", overhead_text),
        ]
        body.append(element("tr", *cells, data_m=standing.method))
        above = standing.method

    head = [
        element(
            "th", plain(name), scope="col", title=title, class_="n" if name in NUMERIC else None
        )
        for name, title in HEADERS.items()
    ]
    return element(
        "table",
        element("caption", "Standings, from the lowest to the highest score", class_="hidden"),
        element("thead", element("tr", *head)),
        element("tbody", *body),
        class_="sortable standings",
    )


def _cell(text: str, value: float, **attributes: object) -> str:
    known = f"{value:.6g}" if math.isfinite(value) else "-1"
    return element("td", plain(text), class_="n", data_v=known, **attributes)


def _cost_cell(standing: Standing, name: str, text: Any) -> str:
    cost = standing.costs.get(name)
    return _cell(text(cost), -1.0 if cost is None else cost)


def _method_header(method: str, index: int) -> str:
    label = element("span", plain(method), class_="name")
    return element(
        "th", swatch(style_of(index, method == OFF)), label, scope="row", class_="method"
    )


def _score_cell(standing: Standing, axis: Axis) -> str:
    text = f"{number(standing.score.mean)} {interval_text(standing.score)}"
    parts = [
        element("b", number(standing.score.mean)),
        element("small", interval_text(standing.score)),
        interval_bar(standing.score, axis, f"{standing.method}: {text}"),
    ]
    value = f"{standing.score.mean:.6g}"
    return element("td", element("span", *parts, class_="score"), data_v=value)


def _comparison_cell(
    comparison: PairedComparison | None, is_better: bool, other: str, sides: int
) -> str:
    if comparison is None:
        return element("td", NOTHING, data_v="2")

    difference = comparison.difference
    title = f"difference from {other}: {number(difference.mean)} {interval_text(difference)}"
    parts = [
        element("b", "✓" if is_better else "✗", aria_hidden="true"),
        element("span", "yes" if is_better else "no", class_="hidden"),
        element("small", plain(_evidence(comparison, sides))),
    ]
    name = "verdict yes" if is_better else "verdict no"
    return element("td", *parts, class_=name, title=title, data_v=f"{comparison.p_value:.6g}")


def heat_map(board: Board, unit: str) -> str:
    """Returns the mean scores of all cells as an HTML table with colors.

    Args:
        board: the board.
        unit: unit of the held-out score of a run.
    """
    columns = [("off", f"mean held-out score of off, {unit}")]
    columns += [("reference", f"held-out score of the tuned reference, {unit}")]
    columns += [("detectable", "smallest difference of two scores found with a power of 80 %")]
    head = [element("th", "instance", scope="col")]
    columns += [(standing.method, standing.method) for standing in board.standings]
    head += [
        element("th", element("span", plain(name)), scope="col", class_="turned", title=title)
        for name, title in columns
    ]

    body = []
    for i, name in enumerate(board.instances):
        instance = board.suite.instance(name)
        about = ", ".join(f"{key} {value}" for key, value in instance.arguments.items())
        shift = [element("small", plain(f"{instance.shift} shifted"))] if instance.shift else []
        cells = [
            element("th", plain(name), *shift, scope="row", title=f"{instance.env_id} {about}"),
            _cell(number(board.base[i], 4), board.base[i]),
            _cell(number(board.reference[i], 4), board.reference[i]),
            _cell(number(board.detectable[i]), board.detectable[i]),
        ]
        cells += [_heat_cell(board, standing, i) for standing in board.standings]
        body.append(element("tr", *cells))

    return element(
        "table",
        element("caption", "Mean score of every method on every instance", class_="hidden"),
        element("thead", element("tr", *head)),
        element("tbody", *body),
        class_="sortable heat",
    )


def _heat_cell(board: Board, standing: Standing, i: int) -> str:
    values, score = standing.values[i], float(np.nanmean(standing.scores[i]))
    finite = values[np.isfinite(values)]
    diverged = len(values) - len(finite)

    title = "all runs diverged" if not len(finite) else f"{finite.mean():.4f}"
    if len(finite) > 1:
        title += f" {interval_text(mean_interval(finite), 4)}"
    if diverged and len(finite):
        title += f", {diverged} diverged"

    classes = ["n", color_class(score)]
    if abs(score) < board.detectable[i]:
        classes.append("faint")
    marks = [element("sup", f"†{diverged}")] if diverged else []
    return element(
        "td",
        number(score),
        *marks,
        class_=" ".join(classes),
        data_v=f"{score:.4g}",
        title=title,
        data_m=standing.method,
    )


def color_class(score: float) -> str:
    """Returns the class of a score's color: `h0`, `p1` to `p6` above it, `q1` to `q4` below it."""
    inside = min(max(score, LOWEST), HIGHEST)
    step = math.floor(inside / COLOR_WIDTH + 0.5)
    return "h0" if not step else f"p{step}" if step > 0 else f"q{-step}"


def color_legend() -> str:
    """Returns the colors of the heat map with their scores."""
    count = round((HIGHEST - LOWEST) / COLOR_WIDTH)
    scores = [LOWEST + COLOR_WIDTH * step for step in range(count + 1)]
    items = [element("li", number(score), class_=color_class(score)) for score in scores]
    return element("ul", *items, class_="colors", aria_label="colors of the scores")
