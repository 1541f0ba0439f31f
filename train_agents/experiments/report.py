"""Report engine of all experiments: reads result files, writes a page of Markdown with figures.

The words of a page are a template beside the results, `results/<experiment>/template.md`. It calls
the parts of the experiment by name, `{{part argument ...}}`. A part returns Markdown, or an empty
text where there is no result yet. A paragraph whose first part is empty is left out, and so is a
section that had parts and has lost all paragraphs with them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpenv.benchmark.results import markdown_table, read_result
from train_agents import figures

Result = Mapping[str, Any]
#: Method -> what the summary of an experiment has of it.
Summary = Mapping[str, Mapping[str, Any]]
#: Renders one part of a page; its arguments are words of the template.
Part = Callable[..., str]
#: Renders the cell of a method in one column.
Cell = Callable[[str], str]
CALL = re.compile(r"\{\{(\w+)((?: [^{}]+)?)\}\}")
#: Keys of a sweep's table -> headers.
HEADERS = {
    "probe_loss": "probe loss [nats]",
    "bpb": "held-out bits per byte, per tuning seed",
    "pay": "pay per decision (which chose)",
    "pass": "pass %",
    "hack": "hack %",
}


@dataclass(frozen=True)
class Column:
    """Column of a table: its header, and the cell of an arm."""

    header: str
    cell: Cell


def load_results(folder: Path) -> dict[str, Result]:
    """Returns the result of every job that is done, by name, in the order of the names."""
    files = sorted(folder.glob("*.json"), key=lambda file: file.stem)
    return {file.stem: read_result(file) for file in files}


def by_arm(results: Mapping[str, Result]) -> dict[str, list[Result]]:
    """Returns the results of each arm: those of `<arm>-<number>` are several results of one arm."""
    arms: dict[str, list[Result]] = {}
    for name, result in results.items():
        stem, _, number = name.rpartition("-")
        arms.setdefault(stem if number.isdigit() else name, []).append(result)
    return arms


def table(names: Sequence[str], columns: Sequence[Column]) -> str:
    """Returns a table with a row per arm, empty without arms."""
    if not names:
        return ""
    headers = [column.header for column in columns]
    return markdown_table(headers, [[column.cell(name) for column in columns] for name in names])


def tried_table(result: Result, columns: Mapping[str, Callable[[Any], str]]) -> str:
    """Returns a table of the points that a sweep tried. The first column marks the chosen one."""
    name, chosen = next(iter(columns)), result["extra"]["chosen"]
    rows = []
    for entry in result["extra"]["table"]:
        cells = [show(entry) for show in columns.values()]
        cells[0] += " (chosen)" if entry[name] == chosen else ""
        rows.append(cells)
    return markdown_table([HEADERS.get(column, column) for column in columns], rows)


def _bpb_list(values: Sequence[float | None]) -> str:
    return ", ".join("diverged" if value is None else f"{value:.4f}" for value in values)


#: Columns of a sweep over configurations of a pretraining run.
SWEPT: dict[str, Callable[[Any], str]] = {
    "configuration": lambda entry: entry["configuration"],
    "probe_loss": lambda entry: f"{entry['probe_loss']:.4f}",
    "bpb": lambda entry: _bpb_list(entry["bpb"]),
}


def percent(found: Sequence[float] | None, digits: int = 1, alone: str = "") -> str:
    """Returns fractions as percent: a mean with its interval, or a mean alone with a remark.

    Args:
        found: mean, low and high, or the mean alone, or None, which is empty.
        digits: decimals.
        alone: remark for a mean without an interval.
    """
    if found is None:
        return ""
    mean, *ends = (f"{100 * value:+.{digits}f}" for value in found)
    return f"{mean} % [{', '.join(ends)}]" if ends else f"{mean} %{alone}"


def points(found: Sequence[float] | None) -> str:
    """Returns a difference of two rates with its interval, in points."""
    if found is None:
        return ""
    mean, low, high = (f"{100 * value:+.1f}" for value in found)
    return f"{mean} [{low}, {high}]"


def ends(interval: Sequence[float] | None, digits: int = 4) -> str:
    """Returns the ends of an interval in brackets, after a space. Empty without one."""
    return f" [{', '.join(f'{end:.{digits}f}' for end in interval)}]" if interval else ""


def bpb_column(summary: Summary) -> Column:
    """Returns the column of held-out bits per byte, with intervals."""
    return Column(
        "held-out bits per byte",
        lambda name: f"{summary[name]['bpb']:.4f}{ends(summary[name]['interval'])}",
    )


def draw_comparison(file: Path, summary: Summary, names: Sequence[str], label: Cell) -> None:
    """Draws the held-out bits per byte of some methods with their intervals, the best last."""
    bars = []
    for name in sorted(names, key=lambda name: -summary[name]["bpb"]):
        mean = summary[name]["bpb"]
        low, high = summary[name]["interval"] or (mean, mean)
        bars.append((label(name), mean, low, high))
    figures.comparison_bars(file, bars, "held-out bits per byte")


def number_cell(summary: Summary, key: str, form: str) -> Cell:
    """Returns a cell with a number of the summary, empty if the number is None."""
    return lambda name: "" if summary[name][key] is None else format(summary[name][key], form)


def commits(results: Mapping[str, Result]) -> str:
    """Returns the commits that made the results."""
    facts = [result["facts"] for result in results.values()]
    names = {str(fact["commit"])[:12] + (" (changed)" if fact["dirty"] else "") for fact in facts}
    return ", ".join(sorted(names))


def command(result: Result) -> str:
    """Returns the command that made a result."""
    return " ".join(["python", *result["facts"]["command"]])


def render(template: str, parts: Mapping[str, Part]) -> str:
    """Returns the page that a template and the parts of an experiment make.

    Raises:
        ValueError: the template calls a part that there is none of.
    """
    sections: list[list[str]] = [[]]
    for paragraph in re.split(r"\n{2,}", template.strip()):
        if paragraph.startswith("#"):
            sections.append([])
        sections[-1].append(paragraph)

    levels = [_level(section[0]) if section else 0 for section in sections]
    pages = [_section(section, parts) for section in sections]
    texts = []

    for number, (text, is_empty) in enumerate(pages):
        # A heading stays for the sections below it.
        below = number + 1
        while below < len(pages) and levels[below] > levels[number] > 0:
            is_empty = is_empty and pages[below][1]
            below += 1
        if text and not is_empty:
            texts.append(text)

    return "\n\n".join(texts) + "\n"


def _level(paragraph: str) -> int:
    """Returns the level of a heading, 0 for other paragraphs."""
    return len(paragraph) - len(paragraph.lstrip("#"))


def _section(paragraphs: Sequence[str], parts: Mapping[str, Part]) -> tuple[str, bool]:
    """Returns the text of a section, and True if it had parts and lost all paragraphs with parts.

    Paragraphs without parts stay.
    """
    texts, had_parts, is_empty = [], False, True
    for paragraph in paragraphs:
        text, first = _paragraph(paragraph, parts)
        if first is not None:
            had_parts, is_empty = True, is_empty and not first
        if first is None or first:
            texts.append(text)
    return "\n\n".join(texts), had_parts and is_empty


def _paragraph(paragraph: str, parts: Mapping[str, Part]) -> tuple[str, str | None]:
    """Returns the text of a paragraph, and that of its first part, None without parts."""
    found: list[str] = []

    def call(match: re.Match[str]) -> str:
        name, arguments = match.group(1), match.group(2).split()
        if name not in parts:
            raise ValueError(f"a template calls {name!r}; expected one of {sorted(parts)}")
        found.append(parts[name](*arguments))
        return found[-1]

    text = CALL.sub(call, paragraph)
    return text, found[0] if found else None


def write_report(
    folder: Path, template: Path, parts: Mapping[str, Part], summary: Mapping[str, Any]
) -> None:
    """Writes summary.json, the figures that the parts draw, and README.md into a folder."""
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    page = render(template.read_text(encoding="utf-8"), parts)
    (folder / "README.md").write_text(page, encoding="utf-8")
    print(f"written: {folder}/README.md, summary.json and figures")
