"""Attacks on the sandbox, as a table that the self-check and the tests run.

An attack is a program. Everything forbidden goes through `attempt`, which prints "refused" and the
exception, "BREACH" and the gain, or "BROKEN" if the attack itself is at fault. An attack is
contained if there is evidence that it tried, nothing says BREACH or BROKEN, the bait is untouched,
and the outcome is what its row expects. The attacks on the verdict look for a token that only the
parent knows.

The table is `attacks.toml`. A row has the fields of `Attack`, with `arguments` of one call of the
program's function `f` each, and what it expects:

    ends_by    reasons, one of which ended the program
    raises     the exceptions that answer its calls
    files      the contents of its scratch folder, besides refusals
    expected   a key of `CHECKS`. The default is only refusals

With both `ends_by` and `raises`, either is expected.
"""

import platform
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from hpenv.posttraining.sandbox.box import Sandbox
from hpenv.posttraining.sandbox.jobs import Call, Outcome
from hpenv.posttraining.sandbox.selfcheck.bait import Bait, lay_bait

_PRELUDE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(action, *arguments):
    try:
        gained = action(*arguments)
    except (NameError, AttributeError, TypeError) as error:
        print("BROKEN", error, flush=True)
    except BaseException as error:
        print("refused", type(error).__name__, flush=True)
    else:
        print("BREACH", repr(gained)[:200], flush=True)
def raw(function, *arguments):
    result = function(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def f(x):
    return x
"""


@dataclass(frozen=True)
class Attack:
    """One row of the table."""

    name: str
    tries: str  # what it tries, for a person
    program: str  # follows the prelude, with BAIT as the result of `Bait.clues`
    expected: Callable[[Outcome], bool]
    calls: tuple[Call, ...] = ()
    scratch: bool = False
    machine: str = ""  # "" is any
    breaks_nothing: bool = False  # whether it may run outside the sandbox, where it has to succeed

    def source(self, bait: Bait) -> str:
        """Returns the whole program."""
        return f"{_PRELUDE}BAIT = {bait.clues()!r}\n{self.program}"

    def is_contained(self, outcome: Outcome, bait: Bait) -> bool:
        """Returns whether the attack was made and gained nothing."""
        said = outcome.stdout + outcome.stderr + repr(outcome.returned) + repr(outcome.files)
        return (
            "BREACH" not in outcome.stdout
            and "BROKEN" not in outcome.stdout
            and bait.token not in said
            and outcome.killed_by != "zygote"
            and self.expected(outcome)
            and bait.is_intact()
        )


def run_attack(box: Sandbox, attack: Attack) -> tuple[bool, Outcome]:
    """Runs one attack, and checks that the next program finds the sandbox as it was.

    Returns:
        Whether the attack was contained, and its outcome.
    """
    with lay_bait() as bait:
        outcome = box.run(attack.source(bait), attack.calls, attack.scratch)
        is_contained = attack.is_contained(outcome, bait)
    after = box.run("def f(x):\n    return [x]\n", [Call("f", (1,))])
    healthy = (
        after.exit_code == 0
        and [result.value for result in after.returned] == [[1]]
        and not after.files
    )
    return is_contained and healthy, outcome


def only_refusals(outcome: Outcome) -> bool:
    """Returns whether every attempt was refused, and the program came to its end.

    There must be at least one attempt.
    """
    return "refused" in outcome.stdout and outcome.exit_code == 0 and not outcome.killed_by


CHECKS: dict[str, Callable[[Outcome], bool]] = {
    "only refusals": only_refusals,
    "only refusals and small files": lambda outcome: (
        only_refusals(outcome) and all(len(content) <= 65_536 for content in outcome.files.values())
    ),
    "no answer": lambda outcome: not outcome.returned,
    "no answer, and an exit": lambda outcome: not outcome.returned and outcome.exit_code == 0,
    "an answer": lambda outcome: len(outcome.returned) == 1 and not outcome.returned[0].error,
    "true or errors": lambda outcome: all(
        result.value is True or result.error for result in outcome.returned
    ),
}


def _attack(row: dict[str, Any]) -> Attack:
    """Returns the attack of a row of the table."""
    ends_by, raises = row.pop("ends_by", []), row.pop("raises", [])
    contents, expected = row.pop("files", None), CHECKS[row.pop("expected", "only refusals")]

    def check(outcome: Outcome) -> bool:
        if ends_by or raises:
            was_ended = outcome.killed_by in ends_by and outcome.exit_code in (None, 1)
            return was_ended or (raises != [] and [r.error for r in outcome.returned] == raises)
        written = {name: content.decode() for name, content in outcome.files.items()}
        return expected(outcome) and contents in (None, written)

    calls = tuple(Call("f", (argument,)) for argument in row.pop("arguments", []))
    return Attack(expected=check, calls=calls, **row)


_TABLE = files("hpenv.posttraining.sandbox.selfcheck").joinpath("attacks.toml").read_text("utf-8")
_ATTACKS = [_attack(row) for row in tomllib.loads(_TABLE)["attack"]]
#: All attacks of this machine, by name.
ATTACKS = {attack.name: attack for attack in _ATTACKS if attack.machine in ("", platform.machine())}
