"""Pages of the reference, from the docstrings of the public classes and functions."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

from docs.markdown import docstring_of

#: Page -> title and objects. A module stands for all that its `__all__` names.
CONTENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "environment": (
        "Environment",
        ("hpenv.env:TrainLoopVectorEnv", "hpenv.envs.single:TrainLoopEnv"),
    ),
    "branching": (
        "Snapshots and branches",
        (
            "hpenv.branching:snapshot",
            "hpenv.branching:restore",
            "hpenv.branching:fork",
            "hpenv.branching:counterfactual",
            "hpenv.plant.snapshots:save",
            "hpenv.plant.snapshots:load",
            "hpenv.plant.snapshots:latest",
        ),
    ),
    "policies": ("Controllers and policies", ("hpenv.policies",)),
    "benchmark": (
        "Benchmark",
        (
            "hpenv.benchmark",
            "hpenv.benchmark.evaluate:evaluate_controller",
            "hpenv.benchmark.controllers:load_controller",
            "hpenv.benchmark.instances:Instance",
            "hpenv.benchmark.instances:Suite",
            "hpenv.benchmark.instances:load_suite",
        ),
    ),
    "deploy": (
        "Deploy",
        (
            "hpenv.deploy",
            "hpenv.deploy.trainer:ControllerCallback",
            "hpenv.deploy.lightning:ControllerCallback",
        ),
    ),
    "traces": ("Traces", ("hpenv.traces",)),
    "extension": (
        "Extension",
        (
            "hpenv.control.channel:Channel",
            "hpenv.control.channels:add_channel",
            "hpenv.telemetry.features:Feature",
            "hpenv.telemetry.rewards:RewardTerm",
            "hpenv.telemetry.reading:Reading",
            "hpenv.plant.measurements:Measurement",
            "hpenv.plant.measurements:Window",
            "hpenv.plant.protocol:Plant",
        ),
    ),
    "integrations": (
        "Integrations",
        (
            "hpenv.integrations.sb3:SB3VecEnv",
            "hpenv.integrations.sb3:from_sb3",
            "hpenv.integrations.sb3_callback:HeldOutCallback",
            "hpenv.integrations.transformers_callback:ProjectionCallback",
        ),
    ),
}


def reference() -> dict[str, str]:
    """Returns the pages: name -> Markdown."""
    return {f"api/{name}.md": page(title, names) for name, (title, names) in CONTENTS.items()}


def page(title: str, names: tuple[str, ...]) -> str:
    """Returns a page of objects."""
    parts = [f"# {title}\n"]
    for path, thing in objects(names):
        if inspect.isclass(thing):
            parts.append(_of_class(path, thing))
        elif callable(thing):
            parts.append(_directive("function", path + signature(thing), docstring_of(thing)))
    return "\n".join(parts)


def objects(names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yields the dotted path and the object of every name."""
    for name in names:
        module_name, _, own = name.partition(":")
        module = importlib.import_module(module_name)
        for attribute in [own] if own else sorted(module.__all__, key=str.lower):
            yield f"{module_name}.{attribute}", getattr(module, attribute)


def _of_class(path: str, thing: type) -> str:
    head = path + signature(thing)
    body = docstring_of(thing)
    init = thing.__dict__.get("__init__")
    if init is not None and init.__doc__ and not init.__doc__.startswith("Initialize self"):
        body += "\n" + docstring_of(init)
    for name, member in vars(thing).items():
        if name.startswith("_") or not inspect.getdoc(member):
            continue
        if isinstance(member, property):
            body += "\n" + _directive("property", name, docstring_of(member))
        elif isinstance(member, staticmethod | classmethod):
            text = docstring_of(member.__func__)
            body += "\n" + _directive("method", name + signature(getattr(thing, name)), text)
        elif inspect.isfunction(member):
            body += "\n" + _directive(
                "method", name + signature(member, True), docstring_of(member)
            )
    return _directive("class", head, body)


def signature(thing: Callable[..., Any], is_method: bool = False) -> str:
    """Returns the parameters of a callable, without types."""
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return ""
    empty = inspect.Parameter.empty
    parameters = [
        p.replace(annotation=empty, default=empty if p.default is empty else _Default(p.default))
        for p in found.parameters.values()
    ]
    return str(inspect.Signature(parameters[1:] if is_method else parameters))


class _Default:
    """A default value, short enough to read."""

    def __init__(self, value: object) -> None:
        text = repr(value)
        self._text = text if len(text) <= 40 and not re.search(r"[<>\n]", text) else "..."

    def __repr__(self) -> str:
        return self._text


def _directive(kind: str, head: str, body: str) -> str:
    longest = max((len(run) for run in re.findall(r"^`{3,}", body, re.M)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{{py:{kind}}} {head}\n\n{body.strip()}\n{fence}\n"
