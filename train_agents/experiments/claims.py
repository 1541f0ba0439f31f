"""Recomputes every number that README and notes state of a result.

Command: `python -m train_agents.experiments.claims`.

`results/CLAIMS.md` has a table per document. A row is one claim: words of the sentence, the numbers
as they are printed, the call that recomputes them, and the command that made the files. The call is
of one function of `SOURCES`, with texts and numbers as arguments. Nothing else of Python is
evaluated.
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

from hpenv.arrays import FloatArray
from hpenv.benchmark.results import read_result
from train_agents.experiments import jel_report, projection_claims, sidecar_claims
from train_agents.experiments.report import load_results

RESULTS = Path("results")
TABLE = RESULTS / "CLAIMS.md"
NUMBER = re.compile(r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?")


@dataclass(frozen=True)
class Claim:
    """Statement of a document."""

    document: str  # path
    words: str  # of its sentence, as they stand there
    printed: str  # its numbers, as they stand there in the same paragraph
    source: str  # the call that recomputes them
    command: str  # that made the files

    @property
    def name(self) -> str:
        """The name of its test."""
        return f"{self.document}: {self.words} {self.printed}"


def read_claims(path: Path = TABLE) -> list[Claim]:
    """Returns all rows of the tables.

    Raises:
        ValueError: a row has another number of cells.
    """
    claims, document = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            document = line.removeprefix("## ").strip()
            continue
        if not document or line.startswith(("| words", "| ---", "|---")) or line[:1] != "|":
            continue

        parts = re.split(r"(?<!\\)\|", line)[1:-1]
        cells = [part.strip().replace("\\|", "|") for part in parts]
        if len(cells) != 4:
            raise ValueError(f"{path}: a row must have 4 cells; got {len(cells)}: {line}")
        words, printed, source, command = cells
        claims.append(Claim(document, words, printed, source.strip("`"), command.strip("`")))
    return claims


def numbers(text: str) -> list[tuple[float, int]]:
    """Returns the numbers of a text, each with the number of decimals it is printed with."""
    found = [match.replace(",", "") for match in NUMBER.findall(text)]
    return [(float(number), len(number.partition(".")[2])) for number in found]


@lru_cache
def _jel_summary(folder: str = "jel") -> dict[str, dict[str, Any]]:
    return jel_report.summarize(load_results(RESULTS / folder / "jobs"))


@lru_cache
def _sidecar_jobs() -> dict[str, Any]:
    return sidecar_claims.load_results(RESULTS / "sidecar" / "jobs")


@lru_cache
def _projection_scores(folder: str = "projection") -> dict[str, Any]:
    return projection_claims.arm_scores(load_results(RESULTS / folder / "jobs"))


def _at(value: Any, keys: Sequence[str | int]) -> Any:
    """Returns the entry of nested dictionaries and lists that the keys lead to."""
    for key in keys:
        value = value[key]
    return value


def _flat(value: Any) -> list[float]:
    return [float(one) for one in np.ravel(np.array(value, dtype=np.float64))]


def jel(method: str, *keys: str) -> list[float]:
    """Returns a method's `bpb` with its interval, or the numbers at some keys of its summary."""
    entry = _jel_summary()[method]
    return _flat(_at(entry, keys)) if keys else _flat([entry["bpb"], *(entry["interval"] or [])])


def jel_next(method: str) -> list[float]:
    """Returns the bits per byte of a method that was run again, and their interval."""
    entry = _jel_summary("jel/next")[method]
    return _flat([entry["bpb"], *(entry["interval"] or [])])


def jel_below(method: str, reference: str) -> list[float]:
    """Returns the percent that a method of JEL lies below a reference, and the interval."""
    return [100 * value for value in _jel_summary()[method]["versus"][reference]]


def jel_controllers(method: str) -> list[float]:
    """Returns the number of controllers, and their lowest and highest held-out bits per byte."""
    means = _jel_summary()[method]["controllers"]
    return [len(means), min(means), max(means)]


def sidecar(arm: str, reference: str, unit: str = "bpb", step: int | None = None) -> list[float]:
    """Returns the percent that an arm of the Sidecar's lies below a reference, paired by seed.

    The interval follows.
    """
    ours, theirs = (sidecar_claims.scores(_sidecar_jobs()[name], step) for name in (arm, reference))
    found = sidecar_claims.advantage(ours, theirs, unit)  # type: ignore[arg-type]
    return [100 * value for value in found or []]


def sidecar_range(reference: str, *arms: str) -> list[float]:
    """Returns the lowest and highest percent that some arms lie below a reference."""
    means = [sidecar(arm, reference)[0] for arm in arms]
    return [min(means), max(means)]


def sidecar_first_version() -> list[float]:
    """Returns the percent that the Sidecar's first version ends above its default.

    It is paired by seed, and the interval follows.
    """
    old = read_result(RESULTS / "sidecar" / "first_version_foundational.json")
    ours, theirs = (sidecar_claims.scores(job) for job in (old, _sidecar_jobs()["detached"]))
    mean, low, high = sidecar_claims.advantage(ours, theirs, "bpb") or []
    return [-100 * mean, -100 * high, -100 * low]


def signal_noise(reward: str) -> list[float]:
    """Returns the lowest and highest noise of a reward over the measured states [nats]."""
    noise = _noise(reward).values()
    return [min(noise), max(noise)]


def signal_ratio(reward: str, other: str) -> list[float]:
    """Returns the lowest and highest ratio of two rewards' noise over the states."""
    ratios = [noise / _noise(other)[step] for step, noise in _noise(reward).items()]
    return [min(ratios), max(ratios)]


def _noise(reward: str) -> dict[int, float]:
    """Returns state -> noise of a credit with this reward alone.

    Channels whose credit has a second step have more.
    """
    found: dict[int, float] = {}
    for row in _sidecar_jobs()["signal"]["rows"]:
        if row["reward"] == reward:
            found[row["step"]] = min(row["noise"], found.get(row["step"], np.inf))
    return found


def projection(arm: str, key: str) -> list[float]:
    """Returns a percentage of an arm of the projection experiment, mean and standard error."""
    return _mean_and_error(_projection_scores()[arm][key])


def projection_next(arm: str, key: str) -> list[float]:
    """Returns the same of an arm that was run again."""
    return _mean_and_error(_projection_scores("projection/next")[arm][key])


def projection_at(arm: str, key: str, step: int) -> list[float]:
    """Returns the same at one report."""
    steps, values = projection_claims.curve(load_results(RESULTS / "projection" / "jobs")[arm], key)
    return _mean_and_error(values[:, list(steps).index(step)])


def _mean_and_error(values: FloatArray) -> list[float]:
    return [100 * float(values.mean()), 100 * projection_claims.sem(values)]


def projection_mean(arm: str, key: str) -> list[float]:
    """Returns a number of an arm of the projection experiment, the mean over its seeds."""
    return [float(_projection_scores()[arm][key].mean())]


def projection_fewer(arm: str, reference: str, key: str = "hack") -> list[float]:
    """Returns the points that an arm has fewer than a reference, with the interval, by seed."""
    found = projection_claims.difference(_projection_scores(), arm, reference, key)
    return [100 * value for value in found or []]


def file(path: str, *keys: str | int) -> list[float]:
    """Returns the numbers at some keys of a JSON file."""
    return _flat(_at(json.loads((RESULTS / path).read_text(encoding="utf-8")), keys))


def percent_of(path: str, *keys: str | int) -> list[float]:
    """Returns the same, in percent."""
    return [100 * value for value in file(path, *keys)]


_OF_SIDECAR = (sidecar, sidecar_range, sidecar_first_version, signal_noise, signal_ratio)
_OF_PROJECTION = (projection, projection_next, projection_at, projection_mean, projection_fewer)
_ALL = (jel, jel_next, jel_below, jel_controllers, *_OF_SIDECAR, *_OF_PROJECTION, file, percent_of)
SOURCES: dict[str, Callable[..., list[float]]] = {each.__name__: each for each in _ALL}


def recompute(claim: Claim) -> list[float]:
    """Returns the numbers of a claim, from the files.

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
        expected = f"source must be one call of {sorted(SOURCES)}"
        raise ValueError(f"{expected}; got {claim.source!r}") from error
    return function(*arguments, **named)


def mismatch(claim: Claim) -> str:
    """Returns the error of a claim. Empty if its document has it and its numbers are right."""
    paragraphs = re.split(r"\n\n|\n(?=[-|] ?)", Path(claim.document).read_text(encoding="utf-8"))
    flat = [" ".join(paragraph.split()) for paragraph in paragraphs]
    if not any(claim.words in paragraph and claim.printed in paragraph for paragraph in flat):
        return f"{claim.document} has no paragraph with {claim.words!r} and {claim.printed!r}"

    printed, found = numbers(claim.printed), recompute(claim)
    if len(printed) > len(found):
        return f"printed {claim.printed!r}; the files give {len(found)} numbers: {found}"
    wrong = [
        f"{number} for {value:.6g}"
        for (number, decimals), value in zip(printed, found, strict=False)
        if abs(number - value) > 0.5 * 10.0**-decimals * (1 + 1e-9)
    ]
    return f"printed {claim.printed!r}; wrong: {', '.join(wrong)}" if wrong else ""


def main() -> None:
    """Prints the verdict on every claim. Ends with an error if one is wrong."""
    num_wrong = 0
    for claim in read_claims():
        problem = mismatch(claim)
        num_wrong += bool(problem)
        print(f"{'WRONG' if problem else 'ok   '}  {claim.name}  {problem}")
    if num_wrong:
        cure = f"mend the sentence in its document, or the row in {TABLE}"
        sys.exit(f"{num_wrong} claims are wrong; {cure}")


if __name__ == "__main__":
    main()
