"""Rules of language for docstrings and names, over every Python file that is not a test.

Files are read with `ast`, so nothing is executed.
"""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.paths import ROOT

FOLDERS = ("hpenv", "agents", "baselines", "speed", "examples", "train_agents")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

QUESTION = re.compile(r"(What|Whether|How|Where|Which)\b")
IRREGULAR = set(
    "begun built chosen drawn found given held kept known lost made said seen sent shown "
    "taken told written".split()
)
#: Words that end like a participle and are none.
NOUNS_AND_VERBS = {"bed", "embed", "exceed", "feed", "need", "proceed", "seed", "speed"}
#: A name that is a question is a predicate, and may end with a participle: `is_contained`.
PREDICATE = re.compile(r"(^|_)(is|are|has|was)_")
#: Name of a function -> the reason to keep it.
ALLOWED = {
    "cosine_tuned": "a baseline, under the name that the results have for it",
    "hand_tuned": "a baseline, under the name that the results have for it",
    "one_sided": "the field's word for bounds, as in a one-sided test",
    "wsd_tuned": "a baseline, under the name that the results have for it",
}


def ends_with_a_participle(name: str) -> bool:
    """True if the last word of a function's name is a past participle."""
    last = name.rsplit("_", 1)[-1]
    return last in IRREGULAR or (last.endswith("ed") and last not in NOUNS_AND_VERBS)


def complaints(source: str) -> Iterator[tuple[int, str]]:
    """Yields the line and the fault of every docstring and name that breaks a rule."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = ast.get_docstring(node)
        if docstring:
            line, first = node.body[0].lineno, docstring.splitlines()[0]
            if QUESTION.match(first):
                yield line, f"a docstring must begin with a verb or a noun; got {first!r}"
            if ";" in first:
                yield line, f"the first line of a docstring must have no semicolon; got {first!r}"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name = node.name
            if name.startswith("_") or name in ALLOWED or PREDICATE.search(name):
                continue
            if ends_with_a_participle(name):
                yield node.lineno, f"a function's name must end with a noun or a verb; got {name!r}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_and_names_keep_the_rules_of_language(path):
    source = path.read_text(encoding="utf-8")
    found = [f"{path.relative_to(ROOT)}:{line}: {text}" for line, text in complaints(source)]
    assert not found, "\n" + "\n".join(found)


def test_every_allowed_name_is_the_name_of_a_function_and_would_be_refused():
    names = {
        node.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert set(ALLOWED) <= names
    assert all(map(ends_with_a_participle, ALLOWED))


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ('"""What it does."""', [1]),
        ('"""Whatever it does, which is fine."""', []),
        ('"""Returns a; b."""', [1]),
        ('"""Returns a.\n\nAnd b; c.\n"""', []),
        ('class A:\n    """Where it is; which one."""', [2, 2]),
        ('class A:\n    def f(self):\n        """How it is."""', [3]),
        ('async def f():\n    """Whether it is."""', [2]),
        ("def steered():\n    pass", [1]),
        ("class A:\n    def rows_kept(self):\n        pass", [2]),
        ("def f():\n    def doubled():\n        pass", [2]),
        ("def _steered():\n    pass", []),
        ("def next_seed():\n    pass", []),
        ("def is_contained():\n    pass", []),
        ("def env_is_wrapped():\n    pass", []),
        ("def one_sided():\n    pass", []),
        ("drawn = 1", []),
    ],
)
def test_every_rule_is_held_and_nothing_else_is(source, lines):
    assert [line for line, _ in complaints(source)] == lines
