"""The order of the modules: every one imports only what stands above it.

Imports are read from the source with `ast`, wherever they stand (in functions, under
`TYPE_CHECKING`, as the text given to `import_module`), so nothing is executed and no optional
dependency has to be installed.

A new module needs a line in `DIRECTLY_ABOVE`: its own name, and the units that stand directly above
it. It may import those and everything above them. A package (envs, policies, ...) is one unit: its
files may import each other, but not in a circle.
"""

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("hpenv", "agents", "train_agents", "baselines")

# fmt: off
DIRECTLY_ABOVE: dict[str, dict[str, tuple[str, ...]]] = {
    "hpenv": {
        "isolation": (),
        "sources": (),
        "tokenization": ("sources",),
        "synthetic": (),
        "data": ("synthetic", "tokenization", "isolation"),
        "kernels": (),
        "model": ("kernels",),
        "values": (),
        "optimizers": ("values",),
        "schedules": ("values",),
        "schedule_forms": ("schedules",),
        "channels": (),
        "panel": ("channels",),
        "gradients": ("panel",),
        "plant": ("panel", "values"),
        "runs": ("plant",),
        "configuration": ("schedules",),
        "pretraining": ("data", "model", "optimizers", "configuration", "gradients", "runs"),
        "posttraining": ("data", "model", "optimizers", "configuration", "gradients", "runs"),
        "snapshots": ("plant", "isolation"),
        "policies": ("snapshots",),
        "trajectory": ("plant",),
        "telemetry": ("plant", "trajectory"),
        "rewards": ("plant", "telemetry"),
        "registers": ("plant",),
        "streams": ("plant",),
        "infos": ("plant",),
        "plot": (),
        "render": ("plot",),
        "env": ("telemetry", "rewards", "registers", "streams", "infos", "render", "isolation"),
        "envs": ("env", "pretraining", "posttraining", "schedule_forms"),
        "trace": ("env", "snapshots"),
        "deploy": ("env", "policies"),
        "integrations": ("env", "infos", "policies", "posttraining"),
    },
    # Of hpenv, an agent sees the policies it trains and nothing else.
    "agents": {
        "base": ("hpenv.policies",),
        "returns": (),
        "losses": (),
        "credits": ("returns",),
        "reinforce": ("base", "credits", "losses"),
        "grpo": ("base", "returns", "losses"),
        "ppo": ("base", "returns", "losses"),
        "adaptive": ("base", "returns", "losses"),
        "bandit": ("base", "returns", "losses"),
    },
}
# fmt: on

# train_agents and baselines join everything; their own order is held by the absence of cycles
# alone.
MAY_IMPORT = {
    "hpenv": {"hpenv"},
    "agents": {"hpenv", "agents"},
    "train_agents": set(PACKAGES),
    "baselines": set(PACKAGES),
}
NAMES_THAT_SAY_NOTHING = {"util", "utils", "common", "helper", "helpers", "misc"}
REGISTRATION = {"__future__", "gymnasium"}

IMPORT_NAMES = {
    "pillow": "PIL",
    "stable-baselines3": "stable_baselines3",
}  # where it is not the name on the package index


def _requirements(requirements: list[str]) -> set[str]:
    names = [re.match(r"[\w.-]+", requirement).group() for requirement in requirements]
    return {IMPORT_NAMES.get(name, name) for name in names}


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = _requirements(PROJECT["dependencies"])
# What may be missing, and may therefore be imported inside a function. torch.utils.tensorboard
# needs tensorboard.
OPTIONAL = {"torch.utils.tensorboard"}.union(
    *(
        _requirements(extra)
        for role, extra in PROJECT["optional-dependencies"].items()
        if role != "dev"
    )
)


class Import(NamedTuple):
    """One import: the dotted name of what is imported, the line, and whether it stands inside a function."""

    target: str
    line: int
    in_function: bool


def module_name(path: Path) -> str:
    """The dotted name of a file of this repository."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_name(path): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def unit_of(module: str) -> str:
    """What stands in the table for a module: `hpenv.envs.jel` is `envs` of hpenv."""
    return module.split(".")[1] if "." in module else ""


def imports_of(source: str, module: str, is_package: bool, known: set[str]) -> list[Import]:
    """All imports of a source; `from a import b` is of `a.b` where that is a module (is in `known`), else of `a`."""
    found = []

    def visit(node: ast.AST, in_function: bool) -> None:
        match node:
            case ast.Import():
                found.extend(Import(alias.name, node.lineno, in_function) for alias in node.names)
            case ast.ImportFrom():
                base = node.module or ""
                if node.level:
                    parts = module.split(".")
                    keep = len(parts) - node.level + is_package
                    base = ".".join([*parts[:keep], *([base] if base else [])])
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    found.append(
                        Import(inner if inner in known else base, node.lineno, in_function)
                    )
            case ast.Call(
                func=ast.Name(id=name) | ast.Attribute(attr=name),
                args=[ast.Constant(value=str(text)), *_],
            ):
                if name in ("import_module", "__import__"):
                    found.append(Import(text, node.lineno, in_function))
        in_function |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, in_function)

    visit(ast.parse(source), False)
    return found


def imports_in_file(module: str) -> list[Import]:
    path = FILES[module]
    return imports_of(
        path.read_text(encoding="utf-8"), module, path.name == "__init__.py", set(FILES)
    )


def above(package: str, unit: str) -> set[str]:
    """Everything a unit of the table may import, as dotted names: what stands directly above it, and above that."""
    found: set[str] = set()
    for name in DIRECTLY_ABOVE[package][unit]:
        if "." in name:
            found.add(name)  # of another package: that unit alone, not what it is built on
        else:
            found |= {f"{package}.{name}"} | above(package, name)
    return found


def violations(module: str, imports: list[Import]) -> list[str]:
    """What is wrong with a module's place and its imports, one line each; empty if nothing is."""
    package, unit = module.split(".")[0], unit_of(module)
    allowed = None  # the units of hpenv and agents that it may import; None is no restriction
    if package in DIRECTLY_ABOVE:
        table = DIRECTLY_ABOVE[package]
        if unit and unit not in table:
            return [
                f"{module} is unknown: add {unit!r} to DIRECTLY_ABOVE[{package!r}] in tests/test_layers.py, "
                "with the units that stand directly above it"
            ]
        # The root of a package stands below all its units.
        allowed = set().union(
            *({f"{package}.{name}"} | above(package, name) for name in ([unit] if unit else table))
        )
    wrong = []
    for target, line, _ in imports:
        other = target.split(".")[0]
        if other in ("tests", "benchmarks"):
            wrong.append(f"line {line}: {module} imports {target}, which nobody imports")
        elif other in PACKAGES and other not in MAY_IMPORT[package]:
            wrong.append(
                f"line {line}: {module} imports {target}, but {package} never imports {other}"
            )
        elif (
            other in PACKAGES
            and allowed is not None
            and f"{other}.{unit_of(target)}" not in allowed
        ):
            wrong.append(
                f"line {line}: {module} imports {target}; above it stand {sorted(allowed)}"
            )
    return wrong


def find_cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """One cycle of a directed graph, as the modules along it, or None."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        for following in sorted(graph.get(node, ())):
            cycle = walk(following, [*path, node])
            if cycle:
                return cycle
        done.add(node)
        return None

    return next((cycle for node in sorted(graph) if (cycle := walk(node, []))), None)


def is_optional(target: str) -> bool:
    return any(target == name or target.startswith(name + ".") for name in OPTIONAL)


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_only_what_stands_above_it(module):
    wrong = violations(module, imports_in_file(module))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", FILES)
def test_only_optional_dependencies_are_imported_inside_functions(module):
    wrong = [
        f"line {i.line}: {i.target}"
        for i in imports_in_file(module)
        if i.in_function and not is_optional(i.target)
    ]
    assert not wrong, (
        f"{module} imports inside a function, where only {sorted(OPTIONAL)} may stand:\n"
        + "\n".join(wrong)
    )


@pytest.mark.parametrize(
    "module", [m for m in FILES if m.split(".")[0] == "hpenv" and unit_of(m) != "integrations"]
)
def test_hpenv_loads_with_its_core_dependencies_alone(module):
    allowed = CORE | sys.stdlib_module_names | {"hpenv"}
    at_load = [i for i in imports_in_file(module) if not i.in_function]
    wrong = [
        f"line {i.line}: {i.target}"
        for i in at_load
        if i.target.split(".")[0] not in allowed or is_optional(i.target)
    ]
    assert not wrong, (
        f"{module} cannot be imported without extras; import these where they are used:\n"
        + "\n".join(wrong)
    )


def test_the_root_of_hpenv_imports_nothing_but_registration():
    path = ROOT / "hpenv" / "__init__.py"
    wrong = [
        i.target for i in imports_in_file("hpenv") if i.target.split(".")[0] not in REGISTRATION
    ]
    assert not wrong, f"{path} may import gymnasium and nothing else, and imports {wrong}"


def test_no_module_imports_itself_through_others():
    graph = {
        module: {i.target for i in imports_in_file(module) if i.target in FILES} for module in FILES
    }
    assert (cycle := find_cycle(graph)) is None, " -> ".join(cycle)


@pytest.mark.parametrize("module", FILES)
def test_no_module_has_a_name_that_says_nothing(module):
    assert not NAMES_THAT_SAY_NOTHING & set(module.split("."))


@pytest.mark.parametrize("package", DIRECTLY_ABOVE)
def test_the_table_has_no_unknown_names_and_no_cycle(package):
    table = DIRECTLY_ABOVE[package]
    own = {unit: {name for name in names if "." not in name} for unit, names in table.items()}
    assert set().union(*own.values()) <= set(table)
    assert find_cycle(own) is None


def test_every_kind_of_import_is_found():
    source = """
import torch.nn as nn, json
from hpenv import data
from hpenv.data import Corpus
from . import sibling
from ..env import TrainLoopEnv
class A:
    import abc
    def f(self):
        from rich import print
        async def g(): importlib.import_module("cma")
"""
    known = {"hpenv.data", "hpenv.env", "hpenv.envs.sibling"}
    assert imports_of(source, "hpenv.envs.jel", False, known) == [
        Import("torch.nn", 2, False),
        Import("json", 2, False),
        Import("hpenv.data", 3, False),
        Import("hpenv.data", 4, False),
        Import("hpenv.envs.sibling", 5, False),
        Import("hpenv.env", 6, False),
        Import("abc", 8, False),
        Import("rich", 10, True),
        Import("cma", 11, True),
    ]
    in_package = imports_of("from . import sibling\nfrom ..env import E", "hpenv.envs", True, known)
    assert [i.target for i in in_package] == ["hpenv.envs.sibling", "hpenv.env"]


@pytest.mark.parametrize(
    ("module", "target", "is_allowed"),
    [
        ("hpenv.panel", "hpenv.channels", True),
        ("hpenv.channels", "hpenv.panel", False),
        ("hpenv.model", "hpenv.optimizers", False),
        ("hpenv.pretraining", "hpenv.model", True),
        ("hpenv.env", "hpenv.channels", True),
        ("hpenv.env", "hpenv.pretraining", False),
        ("hpenv.env", "hpenv.envs.jel", False),
        ("hpenv.envs.jel", "hpenv.pretraining", True),
        ("hpenv.policies.neutral", "hpenv.policies.gaussian_mlp", True),
        ("hpenv.policies.neutral", "hpenv.env", False),
        ("hpenv.integrations.sb3", "hpenv.env", True),
        ("hpenv.env", "agents.base", False),
        ("hpenv.env", "hpenv", False),
        ("agents.grpo", "hpenv.policies.gaussian_mlp", True),
        ("agents.grpo", "hpenv.snapshots", False),
        ("agents.ppo", "hpenv.integrations.sb3", False),
        ("agents.ppo", "hpenv", False),
        ("agents", "agents.grpo", True),
        ("agents", "hpenv.env", False),
        ("agents.returns", "hpenv.policies", False),
        ("agents.ppo", "agents.grpo", False),
        ("agents.grpo", "train_agents.rollout", False),
        ("baselines.run", "train_agents.results", True),
        ("train_agents.train", "hpenv", True),
        ("train_agents.train", "benchmarks.run", False),
    ],
)
def test_the_picture_allows_and_forbids_what_it_shows(module, target, is_allowed):
    assert (not violations(module, [Import(target, 1, False)])) == is_allowed


@pytest.mark.parametrize("module", ["hpenv.gadget", "hpenv.gadget.inner", "agents.gadget"])
def test_an_unknown_module_is_told_where_to_go(module):
    (message,) = violations(module, [])
    assert (
        f"add 'gadget' to DIRECTLY_ABOVE[{module.split('.')[0]!r}] in tests/test_layers.py"
        in message
    )


def test_a_cycle_is_found_and_named():
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
