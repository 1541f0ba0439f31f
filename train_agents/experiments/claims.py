"""Recomputes every number that README and notes state of a result: `python -m
train_agents.experiments.claims`.

`results/CLAIMS.md` has a table per document. A row is one claim: words of the sentence, the numbers
as they are printed, what they are computed from, and the command that made that. What they are
computed from is one call of a function of `SOURCES`, with texts and numbers as arguments: nothing
else of Python is evaluated.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hpenv.benchmark.results import read_result
from train_agents.experiments import jel_report, projection_claims, sidecar_claims
from train_agents.experiments.report import load_results

RESULTS = Path("results")
TABLE = RESULTS / "CLAIMS.md"
NUMBER = re.compile(r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?")


@dataclass(frozen=True)
class Claim:
    """A statement of a document.

    Attributes:
        document: that states it.
        words: of its sentence, as they stand there.
        printed: its numbers, as they stand there in the same paragraph.
        source: the call that recomputes them.
        command: that made the files.
    """

    document: str
    words: str
    printed: str
    source: str
    command: str

    @property
    def name(self) -> str:
        """How a test calls it."""
        return f"{self.document}: {self.words} {self.printed}"


def read_claims(path: Path = TABLE) -> list[Claim]:
    """All rows of the tables.

    Raises:
        ValueError: for a row with another number of cells.
    """
    claims, document = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            document = line.removeprefix("## ").strip()
        elif (
            document and line.startswith("|") and not line.startswith(("| words", "| ---", "|---"))
        ):
            cells = [
                cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]
            ]
            if len(cells) != 4:
                raise ValueError(f"{path}: a row must have 4 cells; got {len(cells)}: {line}")
            words, printed, source, command = cells
            claims.append(Claim(document, words, printed, source.strip("`"), command.strip("`")))
    return claims


def numbers(text: str) -> list[tuple[float, int]]:
    """The numbers of a text and how many decimals each is printed with."""
    found = [match.replace(",", "") for match in NUMBER.findall(text)]
    return [(float(number), len(number.partition(".")[2])) for number in found]


@lru_cache
def _jel(folder: str) -> dict[str, Any]:
    return jel_report.summarize(load_results(RESULTS / folder / "jobs"))


@lru_cache
def _sidecar_jobs() -> dict[str, Any]:
    return dict(sidecar_claims.load_results(RESULTS / "sidecar" / "jobs"))


@lru_cache
def _projection(folder: str = "projection") -> dict[str, Any]:
    return dict(projection_claims.scored(load_results(RESULTS / folder / "jobs")))


def _at(value: Any, keys: Sequence[str | int]) -> Any:
    for key in keys:
        value = value[key]
    return value


def _flat(value: Any) -> list[float]:
    return [float(one) for one in np.ravel(np.array(value, dtype=np.float64))]


def jel(method: str, *keys: str) -> list[float]:
    """What the JEL report's summary says of a method: `bpb` with its interval, or what the keys lead to."""
    entry = _jel("jel")[method]
    return _flat(_at(entry, keys)) if keys else _flat([entry["bpb"], *(entry["interval"] or [])])


def jel_below(method: str, reference: str) -> list[float]:
    """Percent that a method of JEL lies below a reference, and the interval."""
    return [100 * value for value in _jel("jel")[method]["versus"][reference]]


def jel_controllers(method: str) -> list[float]:
    """Number of controllers, lowest and highest held-out bits per byte."""
    own = _jel("jel")[method]["controllers"]
    return [len(own), min(own), max(own)]


def sidecar(arm: str, reference: str, unit: str = "bpb", step: int | None = None) -> list[float]:
    """Percent that an arm of the Sidecar's lies below a reference, paired by seed, and the interval."""
    ours, theirs = (sidecar_claims.scores(_sidecar_jobs()[name], step) for name in (arm, reference))
    found = sidecar_claims.advantage(ours, theirs, unit)  # type: ignore[arg-type]
    return [100 * value for value in found or []]


def sidecar_first_version() -> list[float]:
    """Percent that the Sidecar's first version ends above its default, paired by seed, and the interval."""
    first = sidecar_claims.scores(
        read_result(RESULTS / "sidecar" / "first_version_foundational.json")
    )
    mean, low, high = (
        sidecar_claims.advantage(first, sidecar_claims.scores(_sidecar_jobs()["detached"]), "bpb")
        or []
    )
    return [-100 * mean, -100 * high, -100 * low]


def signal_noise(reward: str) -> list[float]:
    """Lowest and highest noise of a reward over the states that it was measured in [nats]."""
    noise = list(_noise(reward).values())
    return [min(noise), max(noise)]


def signal_ratio(reward: str, other: str) -> list[float]:
    """How many times the noise of another reward that of one is: lowest and highest over the states."""
    ratios = [noise / _noise(other)[step] for step, noise in _noise(reward).items()]
    return [min(ratios), max(ratios)]


def _noise(reward: str) -> dict[int, float]:
    """State -> noise of a credit of this reward alone; channels whose credit has a second step have more."""
    found: dict[int, float] = {}
    for row in _sidecar_jobs()["signal"]["rows"]:
        if row["reward"] == reward:
            found[row["step"]] = min(row["noise"], found.get(row["step"], np.inf))
    return found


def sidecar_range(reference: str, *arms: str) -> list[float]:
    """Percent that the last and the first of some arms lie below a reference."""
    means = [sidecar(arm, reference)[0] for arm in arms]
    return [min(means), max(means)]


def projection(arm: str, key: str) -> list[float]:
    """Percent of an arm of the projection experiment, mean and standard error over its seeds."""
    values = _projection()[arm][key]
    return [100 * float(values.mean()), 100 * projection_claims.sem(values)]


def projection_next(arm: str, key: str) -> list[float]:
    """The same of an arm that was run again."""
    values = _projection("projection/next")[arm][key]
    return [100 * float(values.mean()), 100 * projection_claims.sem(values)]


def projection_at(arm: str, key: str, step: int) -> list[float]:
    """Percent of an arm of the projection experiment at one report, mean and standard error over its seeds."""
    steps, values = projection_claims.curve(load_results(RESULTS / "projection" / "jobs")[arm], key)
    own = values[:, list(steps).index(step)]
    return [100 * float(own.mean()), 100 * projection_claims.sem(own)]


def projection_mean(arm: str, key: str) -> list[float]:
    """A number of an arm of the projection experiment, the mean over its seeds."""
    return [float(_projection()[arm][key].mean())]


def projection_fewer(arm: str, reference: str, key: str = "hack") -> list[float]:
    """Points that an arm has fewer than a reference, paired by seed, and the interval."""
    return [
        100 * value
        for value in projection_claims.difference(_projection(), arm, reference, key) or []
    ]


def file(path: str, *keys: str | int) -> list[float]:
    """What the keys lead to in a JSON file."""
    return _flat(_at(json.loads((RESULTS / path).read_text(encoding="utf-8")), keys))


def percent_of(path: str, *keys: str | int) -> list[float]:
    """The same, in percent."""
    return [100 * value for value in file(path, *keys)]


SOURCES: dict[str, Callable[..., list[float]]] = {
    function.__name__: function
    for function in (
        *(jel, jel_below, jel_controllers, sidecar, sidecar_range),
        *(sidecar_first_version, signal_noise, signal_ratio),
        *(
            projection,
            projection_next,
            projection_at,
            projection_mean,
            projection_fewer,
            file,
            percent_of,
        ),
    )
}


def recomputed(claim: Claim) -> list[float]:
    """The numbers of a claim, from the files.

    Raises:
        ValueError: its source is no call of a function of SOURCES.
    """
    try:
        call = ast.parse(claim.source, mode="eval").body
        assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        arguments = [ast.literal_eval(argument) for argument in call.args]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        function = SOURCES[call.func.id]
    except (SyntaxError, AssertionError, ValueError, KeyError) as error:
        raise ValueError(
            f"source must be one call of {sorted(SOURCES)}; got {claim.source!r}"
        ) from error
    return function(*arguments, **named)


def mismatch(claim: Claim) -> str:
    """What is wrong with a claim; empty if it stands in its document and its numbers are those of the files."""
    paragraphs = re.split(r"\n\n|\n(?=[-|] ?)", Path(claim.document).read_text(encoding="utf-8"))
    flat = [" ".join(paragraph.split()) for paragraph in paragraphs]
    if not any(claim.words in paragraph and claim.printed in paragraph for paragraph in flat):
        return f"{claim.document} has no paragraph with {claim.words!r} and {claim.printed!r}"
    printed, found = numbers(claim.printed), recomputed(claim)
    if len(printed) > len(found):
        return f"printed {claim.printed!r}; the files give {len(found)} numbers: {found}"
    wrong = [
        f"{number} for {value:.6g}"
        for (number, decimals), value in zip(printed, found, strict=False)
        if abs(number - value) > 0.5 * 10.0**-decimals * (1 + 1e-9)
    ]
    return f"printed {claim.printed!r}; wrong: {', '.join(wrong)}" if wrong else ""


def main() -> None:
    """Prints what every claim is recomputed to; ends with an error if one is wrong."""
    problems = 0
    for claim in read_claims():
        problem = mismatch(claim)
        problems += bool(problem)
        print(f"{'WRONG' if problem else 'ok   '}  {claim.name}  {problem}")
    if problems:
        sys.exit(
            f"{problems} claims are wrong; mend the sentence in its document, or the row in {TABLE}"
        )


if __name__ == "__main__":
    main()
