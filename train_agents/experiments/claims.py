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
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from hpenv.benchmark.results import read_result
from train_agents.experiments import attached, jel, projection_report, sidecar, sidecar_claims
from train_agents.experiments.projection_claims import curve
from train_agents.experiments.report import Data
from train_agents.experiments.samples import Sample, bits_per_byte, samples

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


REPORTS = {
    "attached": attached.REPORT, "jel": jel.REPORT, "projection": projection_report.REPORT,
    "sidecar": sidecar.REPORT,
}  # fmt: skip


@lru_cache
def _data(folder: str) -> Data:
    return REPORTS[folder.partition("/")[0]].load(RESULTS / folder)


def mean(folder: str, arm: str, key: str = "bpb") -> list[float]:
    """Returns a number of an arm with its interval."""
    return _data(folder).arms[arm][key].estimate()


def rate(folder: str, arm: str, key: str, step: int | None = None) -> list[float]:
    """Returns a percentage of an arm, mean and standard error, at its end or at one report."""
    data = _data(folder)
    found = data.arms[arm][key]
    if step is not None:
        steps, values = curve(data.jobs[arm], key)
        found = Sample(found.seeds, values[:, list(steps).index(step)][None])
    return [100 * found.mean, 100 * found.error]


def below(
    folder: str, arm: str, reference: str, key: str = "bpb", step: int | None = None
) -> list[float]:
    """Returns the percent that an arm lies below a reference, paired by seed, and the interval."""
    found = sidecar_claims.below_at(_data(folder), arm, reference, key, step)
    return [100 * value for value in found]


def fewer(folder: str, arm: str, reference: str, key: str = "hack") -> list[float]:
    """Returns the points that an arm has fewer than a reference, by seed, and the interval."""
    found = _data(folder).below(arm, reference, key, relative=False)
    return [100 * value for value in found]


def versus(arm: str, reference: str) -> list[float]:
    """Returns the percent that a method of JEL lies below a reference, and the interval."""
    data = _data("jel")
    return [100 * value for value in jel.REPORT.summarize(data)[arm]["versus"][reference]]


def recovery(arm: str, base: str, best: str) -> list[float]:
    """Returns the percent of the way from one method's mean to another's that an arm goes."""
    own, start, end = (_data("jel").arms[name]["bpb"].mean for name in (arm, base, best))
    return [100 * (start - own) / (start - end)]


def controllers(arm: str) -> list[float]:
    """Returns the number of controllers, and their lowest and highest held-out bits per byte."""
    means = _data("jel").arms[arm]["bpb"].values.mean(1)
    return [len(means), means.min(), means.max()]


def range_below(folder: str, reference: str, *arms: str) -> list[float]:
    """Returns the lowest and highest percent that some arms lie below a reference."""
    means = [below(folder, arm, reference)[0] for arm in arms]
    return [min(means), max(means)]


def first_version() -> list[float]:
    """Returns the percent that the Sidecar's first version ends above its default.

    It is paired by seed, and the interval follows.
    """
    old = read_result(RESULTS / "sidecar" / "first_version_foundational.json")
    ours = samples([old], bits_per_byte)["bpb"]
    middle, low, high = ours.below(_data("sidecar").arms["detached"]["bpb"])
    return [-100 * middle, -100 * high, -100 * low]


def noise(reward: str, other: str = "") -> list[float]:
    """Returns the lowest and highest noise of a reward over the measured states [nats].

    With another reward, it is the ratio of the two.
    """
    found = _noise(reward)
    values = [value / _noise(other)[step] if other else value for step, value in found.items()]
    return [min(values), max(values)]


def _noise(reward: str) -> dict[int, float]:
    """Returns state -> noise of a credit with this reward alone.

    Channels whose credit has a second step have more.
    """
    found: dict[int, float] = {}
    for row in _data("sidecar").rows("signal"):
        if row["reward"] == reward:
            found[row["step"]] = min(row["noise"], found.get(row["step"], np.inf))
    return found


def file(path: str, *keys: str | int) -> list[float]:
    """Returns the number at some keys of a JSON file."""
    value = json.loads((RESULTS / path).read_text(encoding="utf-8"))
    for key in keys:
        value = value[key]
    return [float(value)]


_ALL = (
    *(mean, rate, below, fewer, versus, recovery, controllers, range_below, first_version),
    *(noise, file),
)
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
