"""Finds a controller by its name on the command line."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from hpenv.policies.controller import Controller, check_controller
from hpenv.policies.sb3_controller import SB3Controller
from hpenv.policies.store import load_policy

#: Forms of a controller's name, for messages and help texts.
FORMS = (
    "the folder of a saved policy or of a training run, module:Class, file.py:Class, "
    "or Algorithm@model.zip of stable-baselines3"
)


def load_controller(name: str) -> Controller:
    """Returns the controller with a name.

    A class is called without arguments. So is a function that returns a controller.

    Args:
        name: the folder of a saved policy or of a training run, `module:Class`, `file.py:Class`, or
            `PPO@model.zip`, a class of stable-baselines3 with the file of its model.

    Raises:
        ValueError: there is nothing under that name, or it is no controller.
    """
    algorithm, at, file = name.partition("@")
    if at and file.endswith(".zip"):
        return _sb3_controller(algorithm, Path(file))

    place, colon, attribute = name.rpartition(":")
    if not colon or not attribute.isidentifier():
        if not Path(name).exists():
            raise ValueError(
                "a controller must be the folder of a saved policy or of a training run, "
                "module:Class, file.py:Class, or Algorithm@model.zip of stable-baselines3; there "
                f"is no {name!r} in {str(Path.cwd())!r}"
            )
        return load_policy(name)

    module = _module(name, place)
    make = getattr(module, attribute, None)
    if not callable(make):
        names = sorted(key for key, value in vars(module).items() if isinstance(value, type))
        raise ValueError(
            f"{name!r} must name a class or function of {place}; it has the classes {names}"
        )

    controller = make()
    check_controller(controller)
    return controller


def _sb3_controller(algorithm: str, file: Path) -> Controller:
    library = importlib.import_module("stable_baselines3")
    kind = getattr(library, algorithm, None)
    if not isinstance(kind, type) or not hasattr(kind, "load"):
        raise ValueError(
            f"before @ must stand an algorithm of stable_baselines3, as PPO; got {algorithm!r}"
        )
    if not file.is_file():
        raise ValueError(f"the part after @ must be a file; got {file}, which does not exist")
    return SB3Controller(kind.load(file, device="cpu"))


def _module(name: str, place: str) -> ModuleType:
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise ValueError(f"controller must be {FORMS}; got {name!r}; {error}") from error

    path = Path(place)
    if not path.is_file():
        raise ValueError(f"controller must be {FORMS}; got {name!r}; there is no file {place}")

    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
