"""Pages of the environments: the manual of each id, its defaults, and a picture of an episode."""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import fields
from typing import Any

import gymnasium as gym

import hpenv
from docs.markdown import DOCS, code, join_rows, table
from docs.pictures import EPISODES

gym.register_envs(hpenv)


def picture(name: str, id: str) -> str:
    """Returns the picture of an episode of an id with its caption, or nothing if there is none."""
    if name not in EPISODES:
        text = "The episode of `examples/quickstart.py`."
        return f"![An episode of {id}](../../episode.png)\n\n{text}\n"
    _, arguments, actor = EPISODES[name]
    if not (DOCS / "pictures" / f"{name}.png").is_file():
        return ""
    shown = ", ".join(f"`{key}={value}`" for key, value in arguments.items())
    caption = f"An episode with seed 0{' and ' + shown if shown else ''} under {actor}."
    return f"![An episode of {id}](../../pictures/{name}.png)\n\n{caption}\n"


def modules() -> dict[str, Any]:
    """Returns the module of every id: name -> module."""
    ids = [spec for id, spec in gym.registry.items() if id.startswith("TrainLoop-")]
    names = [str(spec.entry_point).partition(":")[0] for spec in ids]
    return {name.rpartition(".")[2]: importlib.import_module(name) for name in names}


def manuals() -> dict[str, str]:
    """Returns the pages: name -> Markdown."""
    found = {f"environments/{name}.md": manual(name, module) for name, module in modules().items()}
    rows = [
        (f"[{module.ID}](environments/{name}.md)", _first_sentence(module), *_lengths(module))
        for name, module in modules().items()
    ]
    headings = ("id", "in short", "steps of an episode", "steps per decision", "decisions")
    links = "\n".join(f"environments/{name}" for name in modules())
    found["environments.md"] = (
        "# Environments\n\nAn id is made by `gym.make` (one run) or by `gym.make_vec` (a "
        "population of runs that are trained in one batch). Its manual is the docstring of its "
        "module.\n\n" + table(headings, rows) + f"\n```{{toctree}}\n:hidden:\n\n{links}\n```\n"
    )
    return found


def _first_sentence(module: Any) -> str:
    return str(module.__doc__).partition(": ")[2].partition(".\n")[0]


def _lengths(module: Any) -> tuple[int, int, int]:
    episode = module.SPEC.episode
    return episode.num_steps, episode.interval, -(-episode.num_steps // episode.interval)


def manual(name: str, module: Any) -> str:
    """Returns the page of an id."""
    first, _, rest = str(module.__doc__).partition("\n")
    about = first.partition(": ")[2]
    parts = [f"# {module.ID}\n", about[:1].upper() + about[1:] + "\n"]
    parts.append(picture(name, module.ID))
    for heading, body in re.findall(r"^(\w[\w ]*):\n((?:    .*\n|\n)+)", rest + "\n", re.M):
        text = join_rows(inspect.cleandoc("\n" + body))
        parts.append(f"## {heading}\n\n{text}\n")
        if heading == "Arguments":
            parts.append(_defaults(module))
    return "\n".join(parts)


def _defaults(module: Any) -> str:
    """Returns the table of all arguments with their defaults."""
    spec = module.SPEC
    episode = {entry.name: getattr(spec.episode, entry.name) for entry in fields(spec.episode)}
    config = spec.settings().config
    own = {entry.name: getattr(config, entry.name) for entry in fields(config)}
    values = {name: own[name] for name in spec.arguments if name in own} | episode
    rows = [(code(name), code(repr(values[name]))) for name in spec.arguments]
    return "All arguments and their defaults:\n\n" + table(("argument", "default"), rows)
