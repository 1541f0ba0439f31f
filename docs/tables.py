"""Pages of the tables: channels, features, reward terms, optimizers, agents, suites, programs."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
from dataclasses import fields, is_dataclass
from typing import Any

from agents.base import Agent
from baselines.methods import FIELD
from baselines.schedules import BASELINES
from docs.manuals import modules
from docs.markdown import ROOT, code, codes, docstring_of, table
from hpenv.benchmark.instances import SUITES, Suite, load_suite
from hpenv.benchmark.references import REFERENCES
from hpenv.control.channels import CHANNELS
from hpenv.lm.architecture import PRESETS, parameter_shapes
from hpenv.optim.optimizers import OPTIMIZERS, rule_description
from hpenv.optim.schedules import SCHEDULES
from hpenv.policies import AdaLRS, Hypergradient, UpdateRatio
from hpenv.policies.store import POLICIES
from hpenv.posttraining.plant import GRPOPlant
from hpenv.pretraining.plant import PretrainingPlant
from hpenv.telemetry.features import FEATURES
from hpenv.telemetry.rewards import REWARD_TERMS
from train_agents.train import AGENTS

PLANTS = {"pretraining": PretrainingPlant, "posttraining": GRPOPlant}

#: Module of a program -> class of its configuration, and what the program is for.
PROGRAMS = {
    "train_agents.train": "TrainConfig",
    "train_agents.evaluate": "EvaluateConfig",
    "train_agents.online": "OnlineConfig",
    "train_agents.make_student": "StudentConfig",
    "train_agents.experiments.jel": "ExperimentConfig",
    "train_agents.experiments.sidecar": "ExperimentConfig",
    "train_agents.experiments.adaptive": "ExperimentConfig",
    "train_agents.experiments.attached": "ExperimentConfig",
    "train_agents.experiments.projection": "ExperimentConfig",
    "baselines.run": "RunConfig",
    "baselines.field": "FieldConfig",
    "baselines.transfer": "TransferConfig",
    "baselines.references": "ReferencesConfig",
    "baselines.sizes": "SizesConfig",
}

#: Control laws that need no training and no file.
LAWS = (UpdateRatio, Hypergradient, AdaLRS)


def tables() -> dict[str, str]:
    """Returns the pages: name -> Markdown."""
    return {
        "channels.md": channels(),
        "features.md": features(),
        "rewards.md": rewards(),
        "optimizers.md": optimizers(),
        "agents.md": agents(),
        "suites.md": suites(),
        "programs.md": programs(),
        "prices.md": prices(),
    }


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n\n")[0]


def channels() -> str:
    """Returns the page of the channels."""
    headings = (
        "channel", "meaning", "values", "neutral", "kind", "surface", "scopes", "optimizers",
        "source",
    )  # fmt: skip
    parts = []
    for plant in PLANTS:
        rows = [
            (
                code(name), own.unit, f"{own.bounds[0]:g} to {own.bounds[1]:g}", f"{own.neutral:g}",
                own.kind, own.surface, codes(own.scopes), codes(own.optimizers) or "all",
                own.source,
            )
            for name, own in CHANNELS.items()
            if plant in own.plants
        ]  # fmt: skip
        parts.append(f"## Channels of {plant}\n\n" + table(headings, rows))
    sets = [
        (code(name), code(module.SPEC.id), ", ".join(f"`{c}/{s}`" for c, s in pairs))
        for module in modules().values()
        for name, pairs in module.SPEC.channel_sets.items()
    ]
    return (
        "# Channels\n\nA channel is a dial of a training run. A cell is a channel at one index of "
        "its scope, and one number of the action, in [-1, 1]. At 0 it changes no bit of the run. "
        "A channel whose neutral is an end of its values is neutral up to 0.1.\n\n"
        + "\n".join(parts)
        + "\n## Channel sets\n\nThe argument `channels` of an id takes one of these names, or a "
        "list of channels.\n\n" + table(("name", "id", "channel/scope"), sets)
    )


def features() -> str:
    """Returns the page of the features and of the measurements that they read."""
    rows = [
        (code(name), own.doc, f"{own.low:g} to {own.high:g}", codes(own.reads),
         "several" if own.columns else "one")
        for name, own in FEATURES.items()
    ]  # fmt: skip
    parts = [
        "# Features\n\nA feature is a gauge that the observation shows. Its numbers stay within "
        "its bounds, whatever the run does.\n",
        table(("feature", "meaning [unit]", "bounds", "reads", "columns"), rows),
        "## Measurements\n\nA plant takes a measurement group only if a feature or a reward term "
        "reads one of its measurements. Privileged measurements reach no observation and no "
        "reward.\n",
    ]
    for name, plant in PLANTS.items():
        own_rows = [
            (code(own.name), own.doc, own.unit, own.per, own.over, own.group or "always",
             "yes" if own.privileged else "")
            for own in plant.measurements
        ]  # fmt: skip
        headings = ("measurement", "meaning", "unit", "per", "over", "group", "privileged")
        parts.append(f"### Plant `{name}`\n\n" + table(headings, own_rows))
    return "\n".join(parts)


def rewards() -> str:
    """Returns the page of the reward terms."""
    rows = [
        (code(name), own.doc, codes(own.reads), own.delay) for name, own in REWARD_TERMS.items()
    ]
    defaults = [
        (code(module.SPEC.id), code(repr(dict(module.SPEC.episode.reward))))
        for module in modules().values()
    ]
    return (
        "# Reward terms\n\nA reward is a weighted sum of terms: "
        '`gym.make(id, reward={"progress": 1.0})`. A larger term is better. The delay is the '
        "number of decisions until a term shows the weights after an action, at one step per "
        "decision.\n\n"
        + table(("term", "meaning [unit]", "reads", "delay"), rows)
        + "\n## Defaults\n\n"
        + table(("id", "reward"), defaults)
    )


def optimizers() -> str:
    """Returns the page of the optimizers, the base schedules and the presets."""
    rules = [
        (
            code(name),
            code(rule_description(own["matrix"])),
            code(rule_description(own["embedding"])),
        )
        for name, own in OPTIMIZERS.items()
    ]
    schedules = [(code(name), _first_line(own)) for name, own in SCHEDULES.items()]
    presets = [
        (
            code(name), own.n_layer, own.n_head, own.n_embd, own.vocab_size,
            f"{sum(_size(shape) for shape in parameter_shapes(own).values()):,}",
        )
        for name, own in PRESETS.items()
    ]  # fmt: skip
    return (
        "# Optimizers, schedules, presets\n\n## Optimizers\n\nThe argument `optimizer`.\n\n"
        + table(("optimizer", "rule of matrices", "rule of embeddings"), rules)
        + "\n## Base schedules\n\nThe arguments `schedule` and `weight_decay_schedule`.\n\n"
        + table(("schedule", "meaning"), schedules)
        + "\n## Presets\n\nThe argument `preset`. The number of parameters is with the vocabulary "
        "of the preset.\n\n"
        + table(("preset", "layers", "heads", "width", "vocabulary", "parameters"), presets)
    )


def _size(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def agents() -> str:
    """Returns the page of agents, policies and baselines."""
    learners = [
        (code(name), code(f"python -m train_agents.train --agent {name}")) for name in AGENTS
    ]
    saved = [(code(name), code(own.__name__), _first_line(own)) for name, own in POLICIES.items()]
    laws = [(code(own.__name__), _first_line(own)) for own in LAWS]
    plain = [(code(name), _first_line(build)) for name, build in BASELINES.items()]
    tuned = [
        (code(name), own.doc, codes(own.start), "yes" if own.controller else "")
        for name, own in FIELD.items()
    ]
    return "\n".join(
        [
            "# Agents, policies, baselines\n",
            "## Agents\n\n" + _first_line(Agent) + "\n",
            table(("agent", "command"), learners),
            "## Policies\n\nA policy is a controller that is saved in a folder, without pickle.\n",
            table(("kind in the folder", "class", "meaning"), saved),
            "## Control laws\n\nThese classes of `hpenv.policies` need no training.\n",
            table(("class", "meaning"), laws),
            "## Baselines of the JEL experiment\n",
            table(("baseline", "meaning"), plain),
            "## Baselines of the benchmark\n\nEach has one coordinate, which is tuned on every "
            "instance. Some have a controller.\n",
            table(("baseline", "meaning", "coordinate", "controller"), tuned),
        ]
    )


def suites() -> str:
    """Returns the page of the suites."""
    found = [load_suite(path.stem) for path in sorted(SUITES.glob("*.json"))]
    rows = [
        (
            code(own.name), own.about, len(own.train), len(own.test), own.num_seeds,
            len(own.test) * own.num_seeds, _tokens(own),
            "yes" if (REFERENCES / f"{own.name}.json").is_file() else "no",
        )
        for own in found
    ]  # fmt: skip
    headings = (
        "suite", "about", "train instances", "test instances", "seeds", "runs of a method",
        "their tokens", "references",
    )  # fmt: skip
    parts = ["# Suites\n", table(headings, rows)]
    for own in found:
        instances = [
            (code(each.name), each.split, code(each.env_id), each.shift or "")
            for each in own.instances
        ]
        parts += [f"## {own.name}\n", table(("instance", "split", "id", "shift"), instances)]
    return "\n".join(parts)


def _tokens(suite: Suite) -> str:
    """Returns the tokens of all runs of one method."""
    counts = [each.tokens for each in suite.test]
    if None in counts:
        return "not counted in tokens"
    return f"{suite.num_seeds * sum(filter(None, counts)):,}"


def programs() -> str:
    """Returns the page of the programs and their options."""
    parts = [
        "# Programs\n\nA program is run from the checkout, as `.venv/bin/python -m <name>`. Its "
        "options are the fields of its configuration: `num_updates` is `--num-updates`.\n"
    ]
    for name, config in PROGRAMS.items():
        module = importlib.import_module(name)
        text = docstring_of(module)
        parts.append(f"## `{name}`\n\n{text}\n" + options(getattr(module, config)))
    return "\n".join(parts)


def options(config: Any) -> str:
    """Returns the table of a configuration: names, defaults, and the comments of the fields."""
    return table(("option", "default", "meaning"), _options(config(), ""))


def _options(config: Any, prefix: str) -> list[tuple[str, str, str]]:
    """Returns the rows of a configuration. That of an agent has a prefix: `--ppo.gamma`."""
    comments: dict[str, str] = {}
    for base in reversed(type(config).__mro__):
        if is_dataclass(base):
            comments |= _comments(inspect.getsource(base))
    rows = []
    for entry in fields(config):
        name, value = prefix + entry.name.replace("_", "-"), getattr(config, entry.name)
        if is_dataclass(value):
            rows += _options(value, f"{name}.")
        else:
            rows.append((code(f"--{name}"), code(value), comments.get(entry.name, "")))
    return rows


def _comments(source: str) -> dict[str, str]:
    """Returns the comment of every field: at the end of its line, or in the lines above it."""
    found, above = {}, list[str]()
    for line in source.splitlines():
        text = line.strip()
        field = re.match(r"    (\w+): [^#]*(?:#\s*(.*))?$", line)
        if text.startswith("#"):
            above.append(text.lstrip("#: "))
        elif field:
            found[field[1]] = field[2] or " ".join(above)
            above = []
        elif text:
            above = []
    return found


def prices() -> str:
    """Returns the page of measured prices, from the committed results of `speed/`."""
    parts = [
        "# Prices\n\n`make bench` measures speed as ratios of two programs that alternate in one "
        "run. These are the committed results with one thread, each with its processor and its "
        "commit.\n"
    ]
    for file in sorted((ROOT / "results").glob("benchmarks*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        rows = [
            row
            for name, value in found.items()
            if name.endswith(", 1 thread")
            for row in _medians(name.removesuffix(", 1 thread"), value)
        ]
        if rows:
            facts = found["facts"]
            parts.append(
                f"## `{file.name}`\n\n{facts['processor']}, commit `{facts['commit'][:7]}`.\n\n"
                + table(("measure", "ratio", "median", "95 %", "smallest", "largest"), rows)
            )
    return "\n".join(parts)


def _medians(path: str, value: Any) -> list[tuple[str, ...]]:
    """Returns the ratios of a measure, in a table's rows."""
    rows: list[tuple[str, ...]] = []
    for name, own in value.items() if isinstance(value, dict) else ():
        if isinstance(own, dict) and "median" in own:
            median, *ends = (f"{own[key]:.3g}" for key in ("median", "min", "max"))
            interval = f"{own['low']:.3g} to {own['high']:.3g}" if "low" in own else ""
            rows.append((path, name, median, interval, *ends))
        elif isinstance(own, dict):
            rows += _medians(f"{path}: {name}", own)
    return rows
