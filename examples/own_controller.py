"""A controller of one's own, scored against doing nothing: `python -m examples.own_controller`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpenv.benchmark.evaluate import evaluate_controller
from hpenv.benchmark.statistics import paired_relative_interval
from hpenv.policies import ControllerSpec

ENV = "TrainLoop-JEL-v0"


class Braking:
    """Starts at a high learning rate and comes down to the base rate."""

    spec = ControllerSpec(channels=[("lr", "run")], observation=["progress"])

    def __init__(self, start: float = 0.8) -> None:
        self.start = np.float32(start)

    def act(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns positions (N, 1) in [-1, 1] at the progress of the runs, (N, 1)."""
        return self.start * (1 - observations)


def main(seeds: Sequence[int] = range(5), arguments: Mapping[str, Any] | None = None) -> float:
    """Prints held-out bits per byte with and without the controller, and returns the gain."""
    own, off = (
        [
            row["bpb"]
            for row in evaluate_controller(controller, ENV, dict(arguments or {}), list(seeds))
        ]
        for controller in (Braking(), None)
    )
    gain = paired_relative_interval(own, off)
    print(f"braking {np.mean(own):.3f}, off {np.mean(off):.3f} held-out bits per byte")
    print(f"{gain.mean:+.1%} below off, 95 % interval [{gain.low:+.1%}, {gain.high:+.1%}]")
    return gain.mean


if __name__ == "__main__":
    main()
