"""Reads Python source without executing it: syntax errors, and the parameters of a function."""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Iterable, Iterator

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class _Default(str):
    """Source of a default value, printed unchanged in a signature."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def why_no_source(text: str) -> str:
    """Returns the reason why a text is not a Python program. Empty if it is one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes such as "\d" in the program
            compile(text, "<source>", "exec", dont_inherit=True)
    except SyntaxError as error:
        return f"{error.msg} in line {error.lineno}"
    except ValueError as error:  # null characters, lone surrogates
        return str(error)
    except (RecursionError, MemoryError):  # the parser raises either one for deep nesting
        return "it is nested too deep"
    return ""


def parse(text: str, mode: str = "exec", strict: bool = False) -> ast.AST:
    """Parses a text.

    Args:
        text: the source.
        mode: `exec`, or `eval` for one expression.
        strict: whether to refuse escapes that Python only warns about, because those of JSON
            differ.

    Raises:
        ValueError: if the text is not Python.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error" if strict else "ignore")
            return ast.parse(text, mode=mode)
    except SyntaxError as error:
        raise ValueError(error.msg) from error
    except (RecursionError, MemoryError) as error:
        raise ValueError("it is nested too deep") from error


def signature(source: str, class_name: str, function: str) -> inspect.Signature | None:
    """Returns the parameters of a function, or of a class's method without its first one.

    Only names bound at the top of the source count, or in the body of that class or of its bases. A
    method of that name in another class does not count, nor does a function within a function.

    Args:
        source: a program.
        class_name: the class that has the method. Empty for a function.
        function: name of the function or method.

    Returns:
        The signature, with positional parameters marked as positional or by name. None if the
            source is not a program or the function is not found.
    """
    if why_no_source(source):
        return None

    tree = parse(source)
    assert isinstance(tree, ast.Module)
    names = dict(_bindings(tree.body))

    node = _method(names, class_name, function, ()) if class_name else _lookup(names, function)
    if isinstance(node, ast.Lambda):
        return _signature(node.args, bool(class_name))
    if not isinstance(node, _FUNCTIONS):
        return None

    is_static = any(
        isinstance(entry, ast.Name) and entry.id == "staticmethod" for entry in node.decorator_list
    )
    return _signature(node.args, bool(class_name) and not is_static)


def _bindings(body: Iterable[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    """Yields the names that statements bind, also within `if`, `try` and the like.

    The last binding of a name is in force.
    """
    for statement in body:
        if isinstance(statement, (*_FUNCTIONS, ast.ClassDef)):
            yield statement.name, statement
        elif isinstance(statement, ast.Assign):
            yield from (
                (target.id, statement.value)
                for target in statement.targets
                if isinstance(target, ast.Name)
            )
        else:
            blocks = (ast.stmt, ast.excepthandler, ast.match_case)
            yield from _bindings(
                node for node in ast.iter_child_nodes(statement) if isinstance(node, blocks)
            )


def _lookup(names: dict[str, ast.AST], name: str) -> ast.AST | None:
    """Returns the node that a name is bound to, through other names."""
    seen, node = {name}, names.get(name)
    while isinstance(node, ast.Name) and node.id not in seen:
        seen.add(node.id)
        node = names.get(node.id)
    return node


def _method(
    names: dict[str, ast.AST], class_name: str, function: str, below: tuple[str, ...]
) -> ast.AST | None:
    """Returns a method of a class, or of the first of its bases that has it."""
    node = _lookup(names, class_name)
    if not isinstance(node, ast.ClassDef) or class_name in below:
        return None
    found = _lookup(dict(_bindings(node.body)), function)
    for base in node.bases:
        if found is None and isinstance(base, ast.Name):
            found = _method(names, base.id, function, (*below, class_name))
    return found


def _signature(arguments: ast.arguments, is_bound: bool) -> inspect.Signature:
    """Returns the signature that the source of a function spells."""
    kinds = inspect.Parameter
    by_place = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(by_place) - len(arguments.defaults)) + arguments.defaults
    parameters = [
        kinds(argument.arg, kinds.POSITIONAL_OR_KEYWORD, default=_default(default))
        for argument, default in zip(by_place, defaults, strict=True)
    ][is_bound:]

    if arguments.vararg:
        parameters.append(kinds(arguments.vararg.arg, kinds.VAR_POSITIONAL))
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parameters.append(kinds(argument.arg, kinds.KEYWORD_ONLY, default=_default(default)))
    if arguments.kwarg:
        parameters.append(kinds(arguments.kwarg.arg, kinds.VAR_KEYWORD))

    return inspect.Signature(parameters)


def _default(node: ast.expr | None) -> object:
    return inspect.Parameter.empty if node is None else _Default(ast.unparse(node))
