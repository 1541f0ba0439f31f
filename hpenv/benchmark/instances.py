"""Instances and suites: the frozen problems that controllers are scored on.

An instance fixes everything of a run except its seed and its controller. A suite is a named, frozen
list of instances, with the number of seeds and the seeds themselves, which are a hash.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym

from hpenv.checks import check_count, suggestion

#: Suites that ship with the package, one JSON file each.
SUITES = Path(__file__).with_name("suites")
#: Arguments of an id that an instance must leave out: they belong to the controller, or to the
#: score, for which every seed is a run of its own and validation is read once.
FOREIGN = frozenset(
    {
        "channels",
        "observation",
        "num_registers",
        "register_leak",
        "reward",
        "seed_mode",
        "evaluate_at_end",
    }
)
SPLITS = ("train", "test")
#: Names of suites and instances, which become names of folders and files.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Instance:
    """Everything that fixes a run, except its seed and its controller.

    Attributes:
        name: name within its suite.
        env_id: a registered id of a training loop. It names the plant.
        arguments: keyword arguments of the id that change the run: preset, data, tokenizer,
            optimizer, base rates, batch, sequence length, number of steps, base schedule. And
            `interval`, for controllers that ask for none.
        split: `train`, for making controllers, or `test`, for scoring them.
        shift: the one factor in which a test instance lies outside the range of the train
            instances, or "".
    """

    name: str
    env_id: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    split: str = "test"
    shift: str = ""

    def __post_init__(self) -> None:
        """Checks the names.

        Raises:
            ValueError: naming the field, what is accepted, and what was given.
        """
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name must be letters, digits, - and _; got {self.name!r}")
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {list(SPLITS)}; got {self.split!r}")
        if foreign := sorted(set(self.arguments) & FOREIGN):
            raise ValueError(
                f"arguments of an instance must leave out {sorted(FOREIGN)}, "
                f"which belong to the controller or to the score; got {foreign}"
            )

    @cached_property
    def digest(self) -> str:
        """Hash of what fixes a run, 12 hexadecimal digits. Its name and its split do not count."""
        return _digest({"env_id": self.env_id, "arguments": dict(self.arguments)})

    @property
    def tokens(self) -> int | None:
        """Budget of a run [tokens], or None if the plant does not count tokens."""
        values = self.arguments
        if "num_steps" not in values or "batch_tokens" not in values:
            return None
        return int(values["num_steps"]) * int(values["batch_tokens"])


@dataclass(frozen=True)
class Suite:
    """A named, frozen list of instances.

    Attributes:
        name: name of the suite. A name with a version, as `pretraining-v1`, pins its numbers: any
            change of dynamics makes a new version.
        about: description in one sentence.
        num_seeds: runs of every test instance.
        block_size: runs that train together. It is part of a row's key, because the last bits of a
            row depend on it.
        instances: instances of both splits.
    """

    name: str
    about: str
    num_seeds: int
    block_size: int
    instances: tuple[Instance, ...]

    def __post_init__(self) -> None:
        """Checks counts and names.

        Raises:
            ValueError: naming the field, what is accepted, and what was given.
        """
        for name in ("num_seeds", "block_size"):
            check_count(name, getattr(self, name))
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name must be letters, digits, - and _; got {self.name!r}")
        names = [instance.name for instance in self.instances]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"instances must have names that differ; got {names}")

    @property
    def test(self) -> tuple[Instance, ...]:
        """Instances that controllers are scored on."""
        return tuple(each for each in self.instances if each.split == "test")

    @property
    def train(self) -> tuple[Instance, ...]:
        """Instances for making controllers."""
        return tuple(each for each in self.instances if each.split == "train")

    def instance(self, name: str) -> Instance:
        """Returns the instance with a name.

        Raises:
            ValueError: naming the instances of the suite.
        """
        for each in self.instances:
            if each.name == name:
                return each
        names = [each.name for each in self.instances]
        raise ValueError(
            f"instance of {self.name} must be one of {names}; got {name!r}{suggestion(name, names)}"
        )

    def seeds(self, instance: Instance) -> list[int]:
        """Returns the seeds of an instance, (num_seeds,), below 2**31.

        A seed is a hash of suite, instance and its number. Nobody chose it.
        """
        return [seed_of(self.name, instance.digest, i) for i in range(self.num_seeds)]

    def text(self) -> str:
        """Returns the suite as JSON, one line per instance."""
        head = {name: getattr(self, name) for name in ("name", "about", "num_seeds", "block_size")}
        lines = [json.dumps(value_of(each), sort_keys=True) for each in self.instances]
        start = ",\n".join(f' "{key}": {json.dumps(value)}' for key, value in head.items())
        return "{\n" + start + ',\n "instances": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"


def seed_of(suite: str, digest: str, number: int) -> int:
    """Returns seed `number` of an instance with a digest, in a suite, below 2**31."""
    text = f"{suite}/{digest}/{number}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big") >> 1


def value_of(instance: Instance) -> dict[str, Any]:
    """Returns an instance in JSON's types, without fields that have their default."""
    values = asdict(instance)
    defaults = {"split": "test", "shift": ""}
    return {key: value for key, value in values.items() if defaults.get(key) != value}


def load_suite(name: str | Path) -> Suite:
    """Returns a suite by its name, or from the path of a JSON file.

    Raises:
        ValueError: there is no such suite, or the file is no suite.
    """
    path = SUITES / f"{name}.json"
    if str(name).endswith(".json"):
        path = Path(name)
    if not path.is_file():
        names = suite_names()
        raise ValueError(
            f"suite must be one of {names}, or the path of a .json file; "
            f"got {str(name)!r}{suggestion(str(name), names)}"
        )

    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        expected = {entry.name for entry in fields(Suite)}
        if set(values) != expected:
            raise ValueError(f"its keys must be {sorted(expected)}; got {sorted(values)}")
        instances = tuple(Instance(**each) for each in values.pop("instances"))
        return Suite(**values, instances=instances)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} must be a suite; {error}") from error


def suite_names() -> list[str]:
    """Returns the names of the suites that ship with the package, sorted."""
    return sorted(path.stem for path in SUITES.glob("*.json"))


def check_instances(suite: Suite) -> None:
    """Checks that every instance can be made, without making it.

    Raises:
        ValueError: naming the instance.
    """
    for instance in suite.instances:
        try:
            gym.spec(instance.env_id)
        except gym.error.Error as error:
            raise ValueError(
                f"env_id of instance {instance.name!r} must be a registered id; "
                f"got {instance.env_id!r}; {error}"
            ) from error


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
