"""Report engine of all experiments: reads result files, writes a page of Markdown with figures.

The words of a page are a template beside the results, `results/<experiment>/template.md`. It calls
the parts of the experiment by name, `{{part argument ...}}`. A part returns Markdown, or an empty
text where there is no result yet. A paragraph whose first part is empty is left out, and so is a
section that had parts and has lost all paragraphs with them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from hpenv.benchmark.facts import ROOT
from hpenv.benchmark.results import markdown_table, read_result
from train_agents.experiments.samples import Result, Row, Sample, Scores, arm_of

#: Renders the cell of an item (an arm, a row...) in one column.
Cell = Callable[[Any], str]
#: Columns of a table: headers, and their cells.
Columns = Sequence[tuple[str, Cell]]
CALL = re.compile(r"\{\{(\w+)((?: [^{}]+)?)\}\}")


@dataclass(frozen=True)
class Data:
    """Results of an experiment: the job files, and the numbers of the arms."""

    known: Mapping[str, Any]  # name -> arm with a label and a group, in the order of the tables
    folder: Path
    jobs: Mapping[str, Result]  # by name, in the order of the names
    arms: Mapping[str, Scores]

    def label(self, arm: str) -> str:
        """Returns the name of an arm in tables and figures, with the number of its job."""
        stem, number = arm_of(arm), arm.removeprefix(arm_of(arm)).replace("-", " ")
        label = self.known[stem].label if stem in self.known else ""
        return (label or stem.replace("_", " ")) + number

    def of_group(self, *groups: str) -> list[str]:
        """Returns the arms of some groups that have numbers, in the order of the tables."""
        found: list[str] = []
        for group in groups:
            found += [arm.name for arm in self.known.values() if arm.group == group]
        return [name for name in found if name in self.arms]

    def members(self, arm: str) -> list[Result]:
        """Returns the results of an arm: those of `<arm>-<number>` are several of one arm."""
        return [result for name, result in self.jobs.items() if arm in (name, arm_of(name))]

    def extra(self, arm: str) -> Mapping[str, Any]:
        """Returns the further numbers of an arm's first job, empty if it is not done."""
        return next((result["extra"] for result in self.members(arm)), {})

    def rows(self, arm: str) -> list[Row]:
        """Returns the rows of all results of an arm."""
        return list(chain.from_iterable(result["rows"] for result in self.members(arm)))

    def divergences(self, arm: str) -> int:
        """Returns the number of an arm's runs that diverged."""
        return sum(row["divergence_reason"] is not None for row in self.rows(arm))

    def below(
        self, arm: str, reference: str, key: str = "bpb", *, relative: bool = True
    ) -> list[float]:
        """Returns `Sample.below` of two arms. Empty where one has not been measured."""
        if key not in self.arms.get(arm, {}) or key not in self.arms.get(reference, {}):
            return []
        return self.arms[arm][key].below(self.arms[reference][key], relative=relative)


# The page

#: Returns a part of a page, from the results and the words of the template.
Part = Callable[..., str]
#: Returns what a figure shows, empty without data; and draws that into a file.
Figure = tuple[Callable[[Data], Any], Callable[[Path, Any], None]]


@dataclass(frozen=True)
class Report:
    """The report of an experiment, as data."""

    name: str  # of the folder with the template
    known: Sequence[Any]  # all arms, each with name, label and group, in the order of the tables
    arms: Callable[[Mapping[str, Result]], Mapping[str, Scores]]
    summarize: Callable[[Data], Mapping[str, Any]]
    shown: str  # part that is also printed
    parts: Mapping[str, Part]
    figures: Mapping[str, Figure]
    #: Returns the numbers and names of the template's sentences, `{{value key format}}`. What has
    #: not been measured is left out.
    values: Callable[[Data], Mapping[str, Any]] = lambda _: {}
    required: str = ""  # job without which there is no report

    def load(self, folder: Path) -> Data:
        """Returns the results in `folder`/jobs."""
        files = sorted((folder / "jobs").glob("*.json"), key=lambda file: file.stem)
        jobs = {file.stem: read_result(file) for file in files}
        return Data({arm.name: arm for arm in self.known}, folder, jobs, self.arms(jobs))

    def write(self, folder: Path) -> None:
        """Writes summary.json, the figures and README.md from the job files in `folder`/jobs."""
        data = self.load(folder)
        if not data.jobs or self.required not in ("", *data.jobs):
            print(f"no report yet: {folder / 'jobs'} lacks {self.required or 'results'}")
            return

        # The last bits of a quantile differ between versions of scipy, so they are rounded away.
        summary = json.loads(
            json.dumps(self.summarize(data)), parse_float=lambda text: float(f"{float(text):.10g}")
        )
        written = f"{json.dumps(summary, indent=1)}\n"
        (folder / "summary.json").write_text(written, encoding="utf-8")
        template = (ROOT / "results" / self.name / "template.md").read_text(encoding="utf-8")
        parts = {name: partial(part, data) for name, part in self.parts.items()}
        page = render(template, {**self._common(data), **parts})
        (folder / "README.md").write_text(page, encoding="utf-8")
        print(f"written: {folder}/README.md, summary.json and figures")
        print(self.parts[self.shown](data))

    def _common(self, data: Data) -> dict[str, Part]:
        """Returns the parts that every page has."""
        facts = [result["facts"] for result in data.jobs.values()]
        command = " ".join(["python", *facts[0]["command"]])
        names = {f["commit"][:12] + (" (changed)" if f["dirty"] else "") for f in facts}
        commits, values = ", ".join(sorted(names)), self.values(data)

        def figure(key: str) -> str:
            select, draw = self.figures[key]
            shown = select(data)
            if not shown:
                return ""
            draw(data.folder / f"{key}.png", shown)
            return f"![{key}]({key}.png)\n"

        return {
            "command": lambda: command,
            "commits": lambda: commits,
            "corpus": lambda: str(facts[0]["corpus"]),
            "made": lambda: f"`{command}` at {commits}",
            "value": lambda key, form="": format(values[key], form) if key in values else "",
            "figure": figure,
        }


def render(template: str, parts: Mapping[str, Part]) -> str:
    """Returns the page that a template and the parts of an experiment make.

    Raises:
        ValueError: the template calls a part that there is none of.
    """
    page: list[str] = []
    below = 0  # level of the heading of the section that was kept last
    sections = [_section(text, parts) for text in re.split(r"\n+(?=#)", template.strip())]
    for text, is_empty in reversed(sections):
        level = len(text) - len(text.lstrip("#"))
        if not is_empty or below > level > 0:  # a heading stays for the sections below it
            page.append(text)
            below = level
    return "\n\n".join(reversed(page)) + "\n"


def _section(section: str, parts: Mapping[str, Part]) -> tuple[str, bool]:
    """Returns the text of a section, and True if it had parts and lost all paragraphs with parts.

    Paragraphs without parts stay.
    """
    kept, filled = [], []  # texts, and True for each paragraph with parts that stayed
    for paragraph in re.split(r"\n{2,}", section):
        found: list[str] = []

        def call(match: re.Match[str], found: list[str] = found) -> str:
            name, arguments = match.group(1), match.group(2).split()
            if name not in parts:
                raise ValueError(f"a template calls {name!r}; expected one of {sorted(parts)}")
            found.append(parts[name](*arguments))
            return found[-1]

        text = CALL.sub(call, paragraph)
        filled += [bool(found[0])] if found else []
        if not found or found[0]:
            kept.append(text.rstrip("\n"))
    return "\n\n".join(kept), bool(filled) and not any(filled)


# Tables and text


def table(items: Iterable[Any], columns: Columns) -> str:
    """Returns a table with a row per item, empty without items."""
    rows = [[cell(item) for _, cell in columns] for item in items]
    return markdown_table([header for header, _ in columns], rows) if rows else ""


def tried_table(result: Result, columns: Columns = ()) -> str:
    """Returns a table of the points that a sweep tried. The first column marks the chosen one."""
    (header, name), *others = columns or SWEPT

    def first(entry: Row) -> str:
        is_chosen = result["extra"]["chosen"] == next(iter(entry.values()))
        return name(entry) + (" (chosen)" if is_chosen else "")

    return table(result["extra"]["table"], [(header, first), *others])


def _bpb_list(entry: Row) -> str:
    return ", ".join("diverged" if value is None else f"{value:.4f}" for value in entry["bpb"])


#: Columns of a sweep over configurations of a pretraining run.
SWEPT: Columns = (
    ("configuration", "{configuration}".format_map),
    ("probe loss [nats]", "{probe_loss:.4f}".format_map),
    ("held-out bits per byte, per tuning seed", _bpb_list),
)


def interval_text(
    found: Iterable[float], form: str = "+.1f", factor: float = 100.0, unit: str = " %",
    alone: str = "",
) -> str:  # fmt: skip
    """Returns a mean with its interval in brackets, empty of nothing.

    Args:
        found: mean, low and high, or the mean alone.
        form: of each number.
        factor: of each number.
        unit: behind the mean.
        alone: remark for a mean without an interval.
    """
    texts = [format(factor * value, form) for value in found]
    if not texts:
        return ""
    mean, *ends = texts
    return f"{mean}{unit} [{', '.join(ends)}]" if ends else f"{mean}{unit}{alone}"


#: Returns a difference of two rates with its interval, in points.
points = partial(interval_text, unit="")


def plus_minus(sample: Sample, factor: float = 100.0, digits: int = 1) -> str:
    """Returns mean and standard error, or the mean of a single run."""
    error = f" ± {factor * sample.error:.{digits}f}" if sample.values.size > 1 else ""
    return f"{factor * sample.mean:.{digits}f}{error}"


def number(value: float | None, form: str) -> str:
    """Returns a number as text, empty of None."""
    return "" if value is None else format(value, form)


def bpb_column(data: Data) -> tuple[str, Cell]:
    """Returns the column of held-out bits per byte, with intervals."""
    title = "held-out bits per byte"
    return title, lambda arm: interval_text(data.arms[arm]["bpb"].estimate(), ".4f", 1.0, "")


def bpb_bars(data: Data, names: Sequence[str]) -> list[tuple[str, float, float, float]]:
    """Returns label, held-out bits per byte and interval of some arms, the best last."""
    bars = []
    for name in sorted(names, key=lambda name: -data.arms[name]["bpb"].mean):
        mean, *ends = data.arms[name]["bpb"].estimate()
        low, high = ends or (mean, mean)
        bars.append((data.label(name), mean, low, high))
    return bars
