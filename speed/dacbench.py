"""Steps of DACBench's SGD env, for `python -m speed.run`.

DACBench, torchvision and their dependencies are no part of the lock. Where they are missing, this
part is left out. Of torchvision only data sets and transforms are used. CIFAR-10 is replaced by
random pixels of the same number and size, which cost the same.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from functools import partial
from typing import Any

import numpy as np
import torch

from speed.operators import adamw_env, decide
from speed.timing import alternate, ratio

#: Examples of a step, of both.
BATCH = 32
#: Tokens of an example of ours.
SEQUENCE_LENGTH = 16
#: Env steps of a round: of DACBench's env, and of ours, whose interval is 1 or DEFAULT_INTERVAL.
NUM_THEIRS, NUM_OURS, DEFAULT_INTERVAL = 5, 100, 50
#: Operators that torchvision describes on import. Its library for them needs torch's own version.
_DETECTIONS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def dacbench_ratios(rounds: int) -> dict[str, Any]:
    """Compares an env step of DACBench to one of ours, and a training step of both.

    Both take one step of AdamW per env step, on 32 examples, with 62,006 (DACBench) and 131,072
    parameters. DACBench evaluates a tenth of its validation set after each, ours its probe.

    Args:
        rounds: alternating rounds.

    Returns:
        Ratios of processor times, or why there are none.
    """
    if missing := [name for name in ("dacbench", "torchvision") if not _is_installed(name)]:
        return {"left out": f"{' and '.join(missing)} not installed"}

    theirs = _their_env()
    single, default = _our_env(1, rounds), _our_env(DEFAULT_INTERVAL, rounds)
    times = alternate(
        {
            "theirs": lambda: [theirs.step(1e-3) for _ in range(NUM_THEIRS)],
            "interval 1": partial(decide, single, NUM_OURS),
            "default interval": partial(decide, default, NUM_OURS // DEFAULT_INTERVAL),
        },
        rounds,
        clock=time.process_time,
    )
    times = {
        name: [each / (NUM_THEIRS if name == "theirs" else NUM_OURS) for each in values]
        for name, values in times.items()
    }
    return {
        f"DACBench / env with {name}, a training step": ratio(times, "theirs", name)
        for name in ("interval 1", "default interval")
    } | {
        "processor milliseconds of a training step": {
            name: 1e3 * float(np.median(values)) for name, values in times.items()
        }
    }


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _our_env(interval: int, rounds: int) -> Any:
    tokens, num_steps = BATCH * SEQUENCE_LENGTH, NUM_OURS * (rounds + 2)
    return adamw_env(1, tokens, SEQUENCE_LENGTH, interval, num_steps)


def _their_env() -> Any:
    """Makes the SGD env with one step of the optimizer per env step, and batches of 32."""
    _import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from dacbench.benchmarks.sgd_benchmark import SGDBenchmark

    benchmark = SGDBenchmark()
    benchmark.config.epoch_mode = False
    benchmark.read_instance_set()
    instances = benchmark.config.instance_set
    benchmark.config.instance_set = dict(
        enumerate(each for each in instances.values() if each.batch_size == BATCH)
    )
    env = benchmark.get_environment()
    env.reset()
    return env


def _import_torchvision() -> None:
    """Imports torchvision beside any torch, and puts random pixels in the place of CIFAR-10."""
    try:
        from torchvision import datasets
    except RuntimeError:  # it is of another torch, and its operators are not there
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}{_DETECTIONS}")
        from torchvision import datasets

    class RandomPixels(datasets.CIFAR10):
        def __init__(self, root: str, train: bool = True, transform: Any = None, **_: Any) -> None:
            generator, count = np.random.default_rng(0), 50_000 if train else 10_000
            self.data = generator.integers(0, 256, (count, 32, 32, 3), np.uint8)
            self.targets = generator.integers(0, 10, count).tolist()
            self.transform, self.target_transform = transform, None

    datasets.CIFAR10 = RandomPixels
