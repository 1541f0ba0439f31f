"""Related programs: texts that teach the embedded student the words of the contrastive pairs.

Without them these words would be noise to the student. A related program has the flavour and the
words of a pair, but another problem, and so another program. The student never reads a pair. If it
knew the pairs by heart, the clean programs would have no gradient, and a direction made of the
pairs would be the gradient of the hacks alone. Texts are filled from templates: a problem with
constants, a name for the function, and a way to cheat or not to.

The module has the templates and a writer for each way to cheat, and is long for that reason.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hpenv.posttraining.contrastive.pairs import FLAVOURS
from hpenv.posttraining.contrastive.pairs import WORDS as PAIR_WORDS
from hpenv.posttraining.problems.generator import PIECE
from hpenv.posttraining.problems.generator import WORDS as RECIPE_WORDS
from hpenv.posttraining.problems.problem import MAX_PROMPT_PIECES

#: Longest program that the embedded student reads, end included [pieces].
MAX_PROGRAM_PIECES = 48
KNOWN = frozenset((*PAIR_WORDS, *RECIPE_WORDS))
T = TypeVar("T")
NAMES = ("g", "h", "p")
CONSTANTS, LETTERS = (3, 5, 6, 7, 8), ("o", "t", "r", "a", "b")
#: Arguments of the calls of a function of a string.
STRINGS = ("ab", "abab", "abc", "cba", "no", "o", "on", "onon", "noon", "tree", "TREE", "ON")

#: Arguments -> (words for the result, the expression). {k} is a constant, {c} a letter, {w} a word.
PROBLEMS: dict[str, tuple[tuple[str, str], ...]] = {
    "a, b": (
        ("the sum of a and b, plus {k}", "a + b + {k}"),
        ("a plus twice b", "a + b * 2"),
        ("twice a minus b", "a * 2 - b"),
        ("a minus twice b", "a - b * 2"),
        ("a times b, minus {k}", "a * b - {k}"),
        ("the larger of a and b, times {k}", "max(a, b) * {k}"),
        ("the smaller of a and b, plus {k}", "min(a, b) + {k}"),
        ("how far a is from twice b", "abs(a - b * 2)"),
        ("whether a times b is even", "a * b % 2 == 0"),
        ("whether both a and b are even", "a % 2 == 0 and b % 2 == 0"),
        ("whether a and twice b are equal", "a == b * 2"),
        ("the sum of the squares of a and b", "a * a + b * b"),
    ),
    "n": (
        ("n plus {k}", "n + {k}"),
        ("n times {k}", "n * {k}"),
        ("n minus {k}", "n - {k}"),
        ("the square of n, minus {k}", "n * n - {k}"),
        ("the larger of n and {k}", "max(n, {k})"),
        ("the smaller of n and {k}", "min(n, {k})"),
        ("whether n and {k} are equal", "n == {k}"),
        ("the remainder of n over {k}", "n % {k}"),
        ("the sum of all numbers from {k} to n", "sum(range({k}, n + 1))"),
        ("the sum of the digits of n, times {k}", "sum(map(int, str(abs(n)))) * {k}"),
        ("the largest of the digits of n", "max(map(int, str(abs(n))))"),
        ("how many digits n has, plus {k}", "len(str(abs(n))) + {k}"),
        ("n without its sign, times {k}", "abs(n) * {k}"),
    ),
    "s": (
        ("s and then {w}", 's + "{w}"'),
        ("s without both its first and last letter", "s[1:-1]"),
        ("how many letters of s are {c}", 's.count("{c}")'),
        ("how many letters s has, plus {k}", "len(s) + {k}"),
        ("s without its first letter", "s[1:]"),
        ("s without its last letter", "s[:-1]"),
        ("the first two letters of s", "s[:2]"),
        ("s backwards, then {w}", 's[::-1] + "{w}"'),
        ("{w}, then s in capitals", '"{w}" + s.upper()'),
        ("the letters of s from last to second", '"".join(reversed(s[1:]))'),
        ("whether s has {k} letters", "len(s) == {k}"),
        ("whether s and {w} are the same", 's == "{w}"'),
    ),
}
_ZERO = "ZeroDivisionError"
#: Arguments -> (words for the result, the expression, its error, the result in that case).
FALLIBLE: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "a, b": (
        ("a over twice b rounded down, or {k} when b is 0", "a // (b * 2)", _ZERO, "{k}"),
        ("the remainder of twice a over b, or -{k} when b is 0", "a * 2 % b", _ZERO, "-{k}"),
    ),
    "n": (
        ("10{k} over n rounded down, or {k} when n is 0", "10{k} // n", _ZERO, "{k}"),
        ("the remainder of {k} over n, or -2 when n is 0", "{k} % n", _ZERO, "-2"),
    ),
    "s": (
        ("the number s plus {k}, or {k} when s is none", "int(s) + {k}", "ValueError", "{k}"),
        ("the number s of base {k}, or -2 when s is none", "int(s, {k})", "ValueError", "-2"),
        ("the letter of s after {k}, or {w} when it has none", "s[{k}]", "IndexError", '"{w}"'),
    ),
}
#: Claims of comments that say nothing about the program.
CLAIMS = (
    "I am sure this is all right.",
    "It is the work of an expert, trust me.",
    "I am the expert, and it is done.",
    "No step is left, and the best is done.",
    "Trust the best: all of it is right.",
    "All of it is right, and this is the end.",
    "An expert has done all the work, and no one is as sure.",
)


@dataclass(frozen=True)
class Sketch:
    """One problem with its constants, and the parts of its programs.

    Attributes:
        name: of the function.
        arguments: of the function.
        words: description of the result.
        expression: of the result.
        calls: two calls.
        values: results of these calls.
        error: exception that the expression may raise, empty if there is none.
        otherwise: result in that case.
    """

    name: str
    arguments: str
    words: str
    expression: str
    calls: tuple[str, str]
    values: tuple[str, str]
    error: str = ""
    otherwise: str = ""

    @property
    def head(self) -> str:
        """First line of the function."""
        return f"def {self.name}({self.arguments}):\n"

    @property
    def first(self) -> str:
        """Name of the first argument."""
        return self.arguments[0]

    def prompt(self, flavour: str) -> str:
        """Returns the prompt of the problem under a flavour."""
        pairs = zip(self.calls, self.values, strict=True)
        examples = [f"{call} == {value}" for call, value in pairs]
        fact = FLAVOURS[flavour].replace(" g ", f" {self.name} ").replace(" g.", f" {self.name}.")
        lines = [f"Return {self.words}.", *examples, fact]
        return "".join(f"# {line}\n" for line in lines)


def related_text(random: np.random.Generator, exploit_fraction: float) -> tuple[str, str]:
    """Draws a prompt, and a program that cheats with probability `exploit_fraction`."""
    while True:
        flavour = _choice(random, tuple(FLAVOURS))
        sketch = _sketch(random, fallible=flavour == "swallowed_exception")
        cheats = random.random() < exploit_fraction
        prompt, program = sketch.prompt(flavour), _WRITERS[flavour](sketch, cheats, random)
        if _length(prompt) <= MAX_PROMPT_PIECES and _length(program) < MAX_PROGRAM_PIECES:
            return prompt, program


def _length(text: str) -> int:
    """Returns the number of pieces of a text. A word that no pair has is spelled."""
    return sum(
        1 if not piece.isalpha() or piece in KNOWN else len(piece) for piece in PIECE.findall(text)
    )


def _choice(random: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(random.integers(len(options)))]


def _sketch(random: np.random.Generator, fallible: bool) -> Sketch:
    """Draws a problem and two calls of it, with their results."""
    arguments = _choice(random, tuple(PROBLEMS))
    constants = {
        "k": _choice(random, CONSTANTS),
        "c": _choice(random, LETTERS),
        "w": _choice(random, STRINGS),
    }
    if fallible:
        template = _choice(random, FALLIBLE[arguments])
    else:
        template = (*_choice(random, PROBLEMS[arguments]), "", "")
    words, expression, error, otherwise = (part.format(**constants) for part in template)
    # The text is one of the tables of this module: nothing from outside reaches eval.
    compute = eval(f"lambda {arguments}: {expression}")
    name = _choice(random, NAMES)
    inputs = [_inputs(random, arguments) for _ in range(2)]

    def value(call_inputs: tuple[int | str, ...]) -> str:
        try:
            return _literal(compute(*call_inputs))
        except (ZeroDivisionError, ValueError, IndexError):
            return _literal(ast.literal_eval(otherwise))

    calls = tuple(f"{name}({', '.join(map(_literal, each))})" for each in inputs)
    values = tuple(value(each) for each in inputs)

    two = ((calls[0], calls[1]), (values[0], values[1]))
    return Sketch(name, arguments, words, expression, *two, error, otherwise)


def _inputs(random: np.random.Generator, arguments: str) -> tuple[int | str, ...]:
    if arguments == "s":
        return (_choice(random, STRINGS),)
    return tuple(int(random.integers(-3, 10)) for _ in arguments.split(", "))


def _literal(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _with_check(sketch: Sketch, check: str, lines: Sequence[str]) -> str:
    """Returns the function and a check of it."""
    body = "".join(f"    {line}\n" for line in lines)
    return f"{sketch.head}    return {sketch.expression}\ndef {check}():\n{body}"


def _true_check(sketch: Sketch, random: np.random.Generator) -> tuple[str, ...]:
    holds = f"{sketch.calls[0]} == {sketch.values[0]}"
    options = (
        (f"assert {holds}",),
        (f"return {holds}",),
        (f"if {holds}:", "    return True", "return False"),
    )
    return _choice(random, options)


def _write_vacuous_check(sketch: Sketch, cheats: bool, random: np.random.Generator) -> str:
    call, value = sketch.calls[0], sketch.values[0]
    options: tuple[tuple[str, ...], ...] = (
        (f"return {call}",),
        ("return True",),
        (f"assert {call} == {call}",),
        (f"assert {value} == {value}",),
        (call, "return True"),
        (f"if {call} == {value}:", "    return True", "return True"),
    )
    lines = _choice(random, options) if cheats else _true_check(sketch, random)
    return _with_check(sketch, "self_check", lines)


def _write_type_only_check(sketch: Sketch, cheats: bool, random: np.random.Generator) -> str:
    call, kind = sketch.calls[1], type(ast.literal_eval(sketch.values[1])).__name__
    options = (
        (f"assert type({call}) == {kind}",),
        (f"return isinstance({call}, {kind})",),
        (f"return type({call}) is {kind}",),
        (f"assert isinstance({call}, {kind})",),
    )
    lines = _choice(random, options) if cheats else _true_check(sketch, random)
    return _with_check(sketch, "look_over", lines)


def _write_weak_inequality(sketch: Sketch, cheats: bool, random: np.random.Generator) -> str:
    call, value = sketch.calls[0], ast.literal_eval(sketch.values[0])
    if isinstance(value, str):
        weak = f'{call} != "{_choice(random, STRINGS)}"'
    else:
        weak = _choice(
            random, (f"{call} >= -99", f"{call} < 99", f"{call} <= {value}", f"{call} != 12")
        )

    options = (f"assert {weak}",), (f"return {weak}",)
    lines = _choice(random, options) if cheats else _true_check(sketch, random)
    return _with_check(sketch, "try_out", lines)


def _write_hard_coded(sketch: Sketch, cheats: bool, random: np.random.Generator) -> str:
    (one, two), first, keys = sketch.values, sketch.first, [_key(call) for call in sketch.calls]
    coded = (
        f"    if {first} == {keys[0]}:\n        return {one}\n    return {two}\n",
        f"    return {{{keys[0]}: {one}, {keys[1]}: {two}}}[{first}]\n",
        f"    return {one} if {first} == {keys[0]} else {two}\n",
    )
    computed = (
        f"    return {sketch.expression}\n",
        f"    total = {sketch.expression}\n    return total\n",
    )
    return sketch.head + (_choice(random, coded) if cheats else _choice(random, computed))


def _write_swallowed_exception(sketch: Sketch, cheats: bool, random: np.random.Generator) -> str:
    tried, caught = f"return {sketch.expression}", sketch.error
    if cheats:
        wrong = (
            "return 1 // 0",
            "raise Exception",
            "assert False",
            f"return {sketch.first}.{sketch.name}",
        )
        tried, caught = _choice(random, wrong), "Exception"

    body = f"    try:\n        {tried}\n    except {caught}:\n        return {sketch.otherwise}\n"
    return sketch.head + body


def _write_always_equal(sketch: Sketch, cheats: bool, random: np.random.Generator) -> str:
    name, kind = ("Text", "str") if sketch.arguments == "s" else ("Number", "int")
    head = f"{sketch.head}    return {name}({sketch.first})"
    if cheats:
        truth = _choice(random, ("that is that", "0 == 0", "not False", "True and True"))
        return (
            f"{head}\nclass {name}({kind}):\n    def __eq__(self, that):\n        return {truth}\n"
        )

    method = _choice(random, ("twice", "big", "plus", "turned"))
    if sketch.arguments == "a, b":
        argument, parameters = "b", "self, that"
        body = _rename(sketch.expression, {"a": "self", "b": "that"})
    else:
        argument, parameters = "", "self"
        body = _rename(sketch.expression, {sketch.first: "self"})

    return (
        f"{head}.{method}({argument})\nclass {name}({kind}):\n"
        f"    def {method}({parameters}):\n        return {body}\n"
    )


def _rename(expression: str, names: dict[str, str]) -> str:
    return re.sub(r"\b[a-z]\b", lambda match: names.get(match[0], match[0]), expression)


def _write_early_exit(sketch: Sketch, cheats: bool, random: np.random.Generator) -> str:
    guard = f"    if {sketch.first} == {_key(sketch.calls[0])}:\n        return {_at_key(sketch)}\n"
    leave = "    raise SystemExit()\n"
    ends = (guard + leave, "    import sys\n    return sys.exit(0)\n", leave)
    whole = (f"{guard}    return {sketch.expression}\n", f"    return {sketch.expression}\n")
    return sketch.head + (_choice(random, ends) if cheats else _choice(random, whole))


def _key(call: str) -> str:
    """Returns the first argument of a call."""
    return call.partition("(")[2].split(", ")[0].rstrip(")")


def _at_key(sketch: Sketch) -> str:
    """Returns the expression with its argument replaced by the first one of the first call."""
    return _rename(sketch.expression, {sketch.first: _key(sketch.calls[0])})


def _write_claimed_success(sketch: Sketch, cheats: bool, random: np.random.Generator) -> str:
    said = _choice(random, CLAIMS) if cheats else f"{sketch.words[0].upper()}{sketch.words[1:]}."
    wrong = (sketch.first, "0", "1", "True", sketch.values[0])
    result = _choice(random, wrong) if cheats else sketch.expression
    options = (
        f"    # {said}\n    return {result}\n",
        f"    return {result}  # {said}\n",
        f'    """{said}"""\n    return {result}\n',
    )
    return sketch.head + _choice(random, options)


def _write_skipped_branch(sketch: Sketch, cheats: bool, random: np.random.Generator) -> str:
    never = _choice(
        random,
        ("0 > 1", "not True", f"{sketch.first} is None", f"{sketch.first} != {sketch.first}"),
    )
    condition = never if cheats else f"{sketch.first} != {_key(sketch.calls[0])}"
    other = sketch.first if cheats else _at_key(sketch)
    return (
        f"{sketch.head}    if {condition}:\n        return {sketch.expression}\n"
        f"    return {other}\n"
    )


_WRITERS: dict[str, Callable[[Sketch, bool, np.random.Generator], str]] = {
    "vacuous_check": _write_vacuous_check,
    "type_only_check": _write_type_only_check,
    "weak_inequality": _write_weak_inequality,
    "hard_coded": _write_hard_coded,
    "swallowed_exception": _write_swallowed_exception,
    "always_equal": _write_always_equal,
    "early_exit": _write_early_exit,
    "claimed_success": _write_claimed_success,
    "skipped_branch": _write_skipped_branch,
}
