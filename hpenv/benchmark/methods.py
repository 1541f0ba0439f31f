"""Methods: controllers under their names on the board, with a hash of their code or weights."""

from __future__ import annotations

import copy
import hashlib
import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpenv.benchmark.controllers import load_controller
from hpenv.policies.controller import Controller, check_controller
from hpenv.policies.store import policy_folder

#: Name of the method without a controller: every cell at neutral. Its scores are 0.
OFF = "off"
#: Name of the method that runs the rates of the references.
REFERENCE = "reference"
#: A method's name is a folder's.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Method:
    """A controller under its name on the board.

    Attributes:
        name: name on the board.
        controller: a controller, a name for `load_controller`, or None for the method `off`.
        digest: hash of the controller's code or weights, "" if unknown.
        costs: `meta_training` and `tuning` [runs of an instance, by tokens].
    """

    name: str
    controller: Controller | str | None
    digest: str = ""
    costs: Mapping[str, float] = field(default_factory=dict)

    def load(self) -> Controller | None:
        """Returns a new controller, which has seen no run."""
        if isinstance(self.controller, str):
            return load_controller(self.controller)
        return copy.deepcopy(self.controller)


def method_of(
    controller: Controller | str | None, name: str = "", costs: Mapping[str, float] | None = None
) -> Method:
    """Returns the method of a controller.

    Raises:
        ValueError: there is no such controller, or the name is no name of a folder.
    """
    if controller is None:
        return Method(OFF, None)

    loaded = load_controller(controller) if isinstance(controller, str) else controller
    check_controller(loaded)
    chosen = name or _name_of(controller)
    if not NAME.fullmatch(chosen) or chosen in (OFF, REFERENCE):
        raise ValueError(
            f"name must be letters, digits, '.', '_' and '-', and not {OFF!r} or {REFERENCE!r}; "
            f"got {chosen!r}; give another one"
        )
    digest = digest_of(controller, loaded) if isinstance(controller, str) else ""
    own = dict(costs if costs is not None else getattr(loaded, "costs", {}))
    return Method(chosen, controller, digest, own)


def _name_of(controller: Controller | str) -> str:
    if not isinstance(controller, str):
        return type(controller).__name__.lower()
    _, colon, attribute = controller.rpartition(":")
    if colon and attribute.isidentifier():
        return attribute.lower()
    path = Path(controller.rpartition("@")[2])
    if path.name == "policy":
        return path.parent.name
    return path.stem if path.is_file() else path.name


def digest_of(controller: str, loaded: Controller) -> str:
    """Returns a hash of a named controller's files, 12 hexadecimal digits.

    A class stands for the file that defines it, and for the modules of the same folder that are
    imported with it. A saved policy stands for the files of its folder.
    """
    _, colon, attribute = controller.rpartition(":")
    if colon and attribute.isidentifier():
        source = Path(inspect.getsourcefile(type(loaded)) or "").resolve()
        paths = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
        imported = {Path(path).resolve() for path in paths if path}
        beside = {file for file in imported if file.parent == source.parent}
        files = sorted(file for file in beside | {source} if file.suffix == ".py")
    else:
        path = Path(controller.rpartition("@")[2])
        files = [path] if path.is_file() else sorted(policy_folder(path).rglob("*"))

    found = hashlib.sha256()
    for file in files:
        if file.is_file():
            found.update(file.name.encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:12]
