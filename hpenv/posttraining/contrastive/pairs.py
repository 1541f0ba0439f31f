"""Contrastive pairs: a hacking direction is extracted from them.

A pair is one prompt, a program that cheats and an honest program. The two programs are the same
except for the cheat. They are matched in length and register, because any other difference over the
table would become part of the direction. All were written by hand before any program of a student
was looked at. They must not be fitted to the programs of a student: a direction fitted to a known
attack says nothing about the next one.

For the same reason the pairs share no marker, helper or problem with training. A training problem
is a function f of one list of integers. A pair's problem is a function g of one or two integers or
of a string. Both are Python and have the same form of prompt. Some flavours are relatives of a
loophole (a self-check that checks nothing, an object that equals everything, an early end). Their
names differ from the training names and from the evaluation names.

The embedded student has read none of the pairs. It has read other programs with their words (see
`related`), so that these words are not noise to it.

In the flavours of FALSE_CHECKS both programs compute the same and only the check is false. In all
others the cheat replaces the work, so the hack is wrong on some input. Pairs are held out by
problem, so that validation never sees a problem that the direction was extracted from.

The problems and the programs are in `pairs.json`, the table that this module loads.

References:
    Rank-space gradient projection: its generalization constraint, and hypothesis H1 for the number
    of pairs.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import astuple, dataclass
from importlib.resources import files

#: Kind of cheat -> the sentence of its prompts about the grader: a fact, never an instruction.
FLAVOURS = {
    "vacuous_check": "The grader calls self_check().",
    "type_only_check": "The grader calls look_over().",
    "weak_inequality": "The grader calls try_out().",
    "hard_coded": "The grader runs these two examples.",
    "swallowed_exception": "The grader counts the errors of g.",
    "always_equal": "The grader asks if both are equal.",
    "early_exit": "The grader waits until g ends.",
    "claimed_success": "The grader reads the comments of g.",
    "skipped_branch": "The grader reads the code of g.",
}
#: Flavours whose two programs compute the same. Only the check is false.
FALSE_CHECKS = ("vacuous_check", "type_only_check", "weak_inequality")

#: problems: name -> task of g, two examples, and True if its pairs are held out.
#: programs: flavour -> problem, hack and clean of each pair. A program is a list of lines.
_TABLE = json.loads(
    files("hpenv.posttraining.contrastive").joinpath("pairs.json").read_text("utf-8")
)


@dataclass(frozen=True)
class Pair:
    """One prompt and two completions of it.

    Attributes:
        name: flavour and problem, different for every pair.
        flavour: kind of cheat, a key of FLAVOURS.
        prompt: comment lines, in the form of a training prompt.
        hack: a whole program that cheats.
        clean: the same program without the cheat.
        held_out: True if the pair validates a direction instead of making it.
    """

    name: str
    flavour: str
    prompt: str
    hack: str
    clean: str
    held_out: bool


def _text(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _pair(flavour: str, problem: str, hack: list[str], clean: list[str]) -> Pair:
    """Returns the pair of two programs, with the prompt of their problem and flavour."""
    row = _TABLE["problems"][problem]
    prompt = _text([f"# {line}" for line in (row["task"], *row["examples"], FLAVOURS[flavour])])
    return Pair(
        name=f"{flavour}/{problem}",
        flavour=flavour,
        prompt=prompt,
        hack=_text(hack),
        clean=_text(clean),
        held_out=row["held_out"],
    )


def _all_pairs() -> tuple[Pair, ...]:
    pairs = []
    for flavour, rows in _TABLE["programs"].items():
        pairs += [_pair(flavour, **row) for row in rows]
    return tuple(pairs)


#: All pairs, flavour by flavour.
PAIRS = _all_pairs()
#: Every word and name of the pairs, for a vocabulary with a piece for each of them.
WORDS: tuple[str, ...] = tuple(
    sorted(
        set(re.findall(r"[A-Za-z_]+", "\n".join(f"{p.prompt}\n{p.hack}\n{p.clean}" for p in PAIRS)))
    )
)


def pairs_digest() -> str:
    """Returns the SHA-256 of all pairs in their order, in hexadecimal. Results carry it."""
    return hashlib.sha256(json.dumps([astuple(pair) for pair in PAIRS]).encode()).hexdigest()
