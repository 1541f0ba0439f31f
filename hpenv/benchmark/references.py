"""References: what a tuned run reaches on every instance of a suite. A score of 1 is that.

A reference is frozen data, made once by `python -m baselines.references`: a search of rates and
schedule per instance, on tuning seeds, then 20 reruns, whose median it is. On another text than
the one that it was made on (`stdlib` is that of the running Python), its rates are run again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpenv.arrays import FloatArray
from hpenv.benchmark.instances import Instance
from hpenv.policies.controller import Columns, ControllerSpec

#: Files of the references, one per suite that ships with the package.
REFERENCES = Path(__file__).with_name("references")


@dataclass(frozen=True)
class Reference:
    """The reference of one instance.

    Attributes:
        value: median held-out score of the reruns, in the plant's unit.
        corpus: sha256 of the text that it was measured on.
        arguments: arguments of the instance that its search changed.
    """

    value: float
    corpus: str
    arguments: Mapping[str, Any]


def load_references(suite: str, path: Path | None = None) -> dict[str, Reference]:
    """Returns the references of a suite: digest of an instance -> reference.

    Args:
        suite: name of the suite.
        path: the file. None: that of the package, and nothing if it has none.

    Raises:
        ValueError: the file is no file of references.
    """
    path = REFERENCES / f"{suite}.json" if path is None else path
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["instances"]
        return {
            values["digest"]: Reference(values["value"], values["corpus"], values["arguments"])
            for values in found.values()
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be a file of references; {error!r}") from error


class AtNeutral:
    """A controller that leaves every cell at neutral. The base class of baselines.

    A baseline is true at every step: it changes arguments of the instance, and writes no cell.
    """

    spec = ControllerSpec()

    def __init__(self) -> None:
        self._num_cells = 0

    def reset(self, columns: Columns) -> None:
        """Reads the number of cells."""
        self._num_cells = len(columns.action_names)

    def act(self, observations: FloatArray) -> NDArray[np.float32]:
        """Returns positions (N, A), all 0."""
        return np.zeros((len(observations), self._num_cells), dtype=np.float32)

    def arguments(self, instance: Instance) -> Mapping[str, Any]:
        """Returns the arguments of an instance that the baseline changes. Here: none."""
        return {}


class References(AtNeutral):
    """The rates of a suite's references, as a method."""

    def __init__(self, suite: str, references: Mapping[str, Reference] | None = None) -> None:
        super().__init__()
        self._suite = suite
        self._references = load_references(suite) if references is None else references

    def arguments(self, instance: Instance) -> Mapping[str, Any]:
        """Returns the reference's arguments.

        Raises:
            ValueError: the instance has no reference.
        """
        if instance.digest not in self._references:
            raise ValueError(
                f"instance {instance.name!r} of {self._suite} has no reference; "
                "make it with: python -m baselines.references"
            )
        return self._references[instance.digest].arguments
