"""Imports of the packages, read with `ast`, and cycles among them."""

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.paths import ROOT

PACKAGES = ("hpenv", "agents", "train_agents", "baselines")


class Import(NamedTuple):
    """One import: the dotted name that is imported, the line, True if it is inside a function."""

    target: str
    line: int
    in_function: bool


def imports_of(source: str, module: str, is_package: bool, known: set[str]) -> list[Import]:
    """All imports of a source.

    `from a import b` is of `a.b` if that is a module (is in `known`), else of `a`.
    """
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


def module_name(path: Path) -> str:
    """The dotted name of a file of this repository."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_name(path): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


@cache
def imports_in_file(module: str) -> list[Import]:
    path = FILES[module]
    return imports_of(
        path.read_text(encoding="utf-8"), module, path.name == "__init__.py", set(FILES)
    )


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
