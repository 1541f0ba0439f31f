"""Related programs: what the embedded student reads so that the words of the contrastive pairs are
not noise to it.

A related program is of a pair's flavour, and its words are those of the pairs; its problem, and so
its program, is none of theirs. No pair is ever read: a direction made of pairs that a student knows
by heart is the gradient of the hacks alone, since the clean programs would have none. Texts are
drawn from templates: a problem with constants, a name for the function, a way to cheat or not to.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hpenv.posttraining.pairs import FLAVOURS
from hpenv.posttraining.pairs import WORDS as PAIR_WORDS
from hpenv.posttraining.recipes import PIECE
from hpenv.posttraining.recipes import WORDS as RECIPE_WORDS
from hpenv.posttraining.tasks import MAX_PROMPT_PIECES

#: Longest program that the embedded student reads [pieces], its end included.
MAX_PROGRAM_PIECES = 48
KNOWN = frozenset((*PAIR_WORDS, *RECIPE_WORDS))
T = TypeVar("T")
NAMES = ("g", "h", "p")
CONSTANTS, LETTERS = (3, 5, 6, 7, 8), ("o", "t", "r", "a", "b")
#: What a function of a string is called with.
STRINGS = ("ab", "abab", "abc", "cba", "no", "o", "on", "onon", "noon", "tree", "TREE", "ON")

#: Arguments -> (what the function returns, the expression); {k} is a constant, {c} a letter, {w} a
#: word.
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
#: Arguments -> (what is returned, the expression, its error, what is returned then).
FALLIBLE: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "a, b": (
        (
            "a over twice b rounded down, or {k} when b is 0",
            "a // (b * 2)",
            "ZeroDivisionError",
            "{k}",
        ),
        (
            "the remainder of twice a over b, or -{k} when b is 0",
            "a * 2 % b",
            "ZeroDivisionError",
            "-{k}",
        ),
    ),
    "n": (
        ("10{k} over n rounded down, or {k} when n is 0", "10{k} // n", "ZeroDivisionError", "{k}"),
        ("the remainder of {k} over n, or -2 when n is 0", "{k} % n", "ZeroDivisionError", "-2"),
    ),
    "s": (
        ("the number s plus {k}, or {k} when s is none", "int(s) + {k}", "ValueError", "{k}"),
        ("the number s of base {k}, or -2 when s is none", "int(s, {k})", "ValueError", "-2"),
        ("the letter of s after {k}, or {w} when it has none", "s[{k}]", "IndexError", '"{w}"'),
    ),
}
#: What a comment claims that has nothing to say of the program.
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
    """One problem with its constants, and what a program of it is written with.

    Attributes:
        name: of the function.
        arguments: of the function.
        words: what it returns.
        expression: of the result.
        calls: two calls.
        values: their results.
        error: what the expression may raise; empty if nothing.
        otherwise: what is returned then.
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
        """The prompt of the problem under a flavour."""
        examples = [
            f"{call} == {value}" for call, value in zip(self.calls, self.values, strict=True)
        ]
        fact = FLAVOURS[flavour].replace(" g ", f" {self.name} ").replace(" g.", f" {self.name}.")
        lines = [f"Return {self.words}.", *examples, fact]
        return "".join(f"# {line}\n" for line in lines)


def related(random: np.random.Generator, exploit_fraction: float) -> tuple[str, str]:
    """Draws one text: the prompt, and a program that cheats with this probability."""
    while True:
        flavour = _choice(random, tuple(FLAVOURS))
        sketch = _sketch(random, fallible=flavour == "swallowed_exception")
        cheats = random.random() < exploit_fraction
        prompt, program = sketch.prompt(flavour), _WRITERS[flavour](sketch, cheats, random)
        if _length(prompt) <= MAX_PROMPT_PIECES and _length(program) < MAX_PROGRAM_PIECES:
            return prompt, program


def _length(text: str) -> int:
    """Pieces of a text; a word that is none of the pairs' is spelled."""
    return sum(
        1 if not piece.isalpha() or piece in KNOWN else len(piece) for piece in PIECE.findall(text)
    )


def _choice(random: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(random.integers(len(options)))]


def _sketch(random: np.random.Generator, fallible: bool) -> Sketch:
    arguments = _choice(random, tuple(PROBLEMS))
    constants = {
        "k": _choice(random, CONSTANTS),
        "c": _choice(random, LETTERS),
        "w": _choice(random, STRINGS),
    }
    template = (
        _choice(random, FALLIBLE[arguments])
        if fallible
        else (*_choice(random, PROBLEMS[arguments]), "", "")
    )
    words, expression, error, otherwise = (part.format(**constants) for part in template)
    compute = eval(f"lambda {arguments}: {expression}")  # of the tables above alone
    name = _choice(random, NAMES)
    shown = [_inputs(random, arguments) for _ in range(2)]

    def value(inputs: tuple[int | str, ...]) -> str:
        try:
            return _quoted(compute(*inputs))
        except (ZeroDivisionError, ValueError, IndexError):
            return _quoted(ast.literal_eval(otherwise))

    calls = tuple(f"{name}({', '.join(_quoted(item) for item in inputs)})" for inputs in shown)
    values = tuple(value(inputs) for inputs in shown)
    return Sketch(
        name,
        arguments,
        words,
        expression,
        (calls[0], calls[1]),
        (values[0], values[1]),
        error,
        otherwise,
    )


def _inputs(random: np.random.Generator, arguments: str) -> tuple[int | str, ...]:
    if arguments == "s":
        return (_choice(random, STRINGS),)
    return tuple(int(random.integers(-3, 10)) for _ in arguments.split(", "))


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _checked(sketch: Sketch, check: str, lines: Sequence[str]) -> str:
    """The function, and a check of it."""
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


def _vacuous_check(sketch: Sketch, cheats: bool, random: np.random.Generator) -> str:
    call, value = sketch.calls[0], sketch.values[0]
    options: tuple[tuple[str, ...], ...] = (
        (f"return {call}",), ("return True",), (f"assert {call} == {call}",), (f"assert {value} == {value}",),
        (call, "return True"), (f"if {call} == {value}:", "    return True", "return True"),
    )  # fmt: skip
    return _checked(
        sketch, "self_check", _choice(random, options) if cheats else _true_check(sketch, random)
    )


def _type_only_check(sketch: Sketch, cheats: bool, random: np.random.Generator) -> str:
    call, kind = sketch.calls[1], type(ast.literal_eval(sketch.values[1])).__name__
    options = (
        (f"assert type({call}) == {kind}",), (f"return isinstance({call}, {kind})",),
        (f"return type({call}) is {kind}",), (f"assert isinstance({call}, {kind})",),
    )  # fmt: skip
    return _checked(
        sketch, "look_over", _choice(random, options) if cheats else _true_check(sketch, random)
    )


def _weak_inequality(sketch: Sketch, cheats: bool, random: np.random.Generator) -> str:
    call, value = sketch.calls[0], ast.literal_eval(sketch.values[0])
    if isinstance(value, str):
        weak = f'{call} != "{_choice(random, STRINGS)}"'
    else:
        weak = _choice(
            random, (f"{call} >= -99", f"{call} < 99", f"{call} <= {value}", f"{call} != 12")
        )
    options = (f"assert {weak}",), (f"return {weak}",)
    return _checked(
        sketch, "try_out", _choice(random, options) if cheats else _true_check(sketch, random)
    )


def _hard_coded(sketch: Sketch, cheats: bool, random: np.random.Generator) -> str:
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


def _swallowed_exception(sketch: Sketch, cheats: bool, random: np.random.Generator) -> str:
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


def _always_equal(sketch: Sketch, cheats: bool, random: np.random.Generator) -> str:
    name, kind = ("Text", "str") if sketch.arguments == "s" else ("Number", "int")
    head = f"{sketch.head}    return {name}({sketch.first})"
    if cheats:
        truth = _choice(random, ("that is that", "0 == 0", "not False", "True and True"))
        return (
            f"{head}\nclass {name}({kind}):\n    def __eq__(self, that):\n        return {truth}\n"
        )
    method = _choice(random, ("twice", "big", "plus", "turned"))
    if sketch.arguments == "a, b":
        own = _renamed(sketch.expression, {"a": "self", "b": "that"})
        return f"{head}.{method}(b)\nclass {name}({kind}):\n    def {method}(self, that):\n        return {own}\n"
    own = _renamed(sketch.expression, {sketch.first: "self"})
    return (
        f"{head}.{method}()\nclass {name}({kind}):\n    def {method}(self):\n        return {own}\n"
    )


def _renamed(expression: str, names: dict[str, str]) -> str:
    return re.sub(r"\b[a-z]\b", lambda found: names.get(found[0], found[0]), expression)


def _early_exit(sketch: Sketch, cheats: bool, random: np.random.Generator) -> str:
    guard = f"    if {sketch.first} == {_key(sketch.calls[0])}:\n        return {_at_key(sketch)}\n"
    leave = "    raise SystemExit()\n"
    ends = (guard + leave, "    import sys\n    return sys.exit(0)\n", leave)
    whole = (f"{guard}    return {sketch.expression}\n", f"    return {sketch.expression}\n")
    return sketch.head + (_choice(random, ends) if cheats else _choice(random, whole))


def _key(call: str) -> str:
    """The first argument of a call."""
    return call.partition("(")[2].split(", ")[0].rstrip(")")


def _at_key(sketch: Sketch) -> str:
    """The expression with the first argument of the first call in the place of the argument."""
    return _renamed(sketch.expression, {sketch.first: _key(sketch.calls[0])})


def _claimed_success(sketch: Sketch, cheats: bool, random: np.random.Generator) -> str:
    said = _choice(random, CLAIMS) if cheats else f"{sketch.words[0].upper()}{sketch.words[1:]}."
    result = (
        _choice(random, (sketch.first, "0", "1", "True", sketch.values[0]))
        if cheats
        else sketch.expression
    )
    options = (
        f"    # {said}\n    return {result}\n",
        f"    return {result}  # {said}\n",
        f'    """{said}"""\n    return {result}\n',
    )
    return sketch.head + _choice(random, options)


def _skipped_branch(sketch: Sketch, cheats: bool, random: np.random.Generator) -> str:
    never = _choice(
        random,
        ("0 > 1", "not True", f"{sketch.first} is None", f"{sketch.first} != {sketch.first}"),
    )
    condition = never if cheats else f"{sketch.first} != {_key(sketch.calls[0])}"
    other = sketch.first if cheats else _at_key(sketch)
    return f"{sketch.head}    if {condition}:\n        return {sketch.expression}\n    return {other}\n"


_WRITERS: dict[str, Callable[[Sketch, bool, np.random.Generator], str]] = {
    "vacuous_check": _vacuous_check,
    "type_only_check": _type_only_check,
    "weak_inequality": _weak_inequality,
    "hard_coded": _hard_coded,
    "swallowed_exception": _swallowed_exception,
    "always_equal": _always_equal,
    "early_exit": _early_exit,
    "claimed_success": _claimed_success,
    "skipped_branch": _skipped_branch,
}
