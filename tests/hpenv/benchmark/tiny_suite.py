"""A suite of tiny instances, and controllers for it."""

import numpy as np

from hpenv.benchmark.instances import Instance, Suite
from hpenv.benchmark.methods import Method
from hpenv.benchmark.references import AtNeutral
from hpenv.benchmark.rows import blocks_of, compute_block, read_rows
from hpenv.policies import ControllerSpec

JEL = "TrainLoop-JEL-v0"
TINY = {
    "preset": "nano",
    "data": "synthetic:3",
    "tokenizer": "bytes",
    "optimizer": "adamw_muon",
    "base_lr": 1e-3,
    "base_weight_decay": 0.1,
    "batch_tokens": 64,
    "sequence_length": 32,
    "num_steps": 8,
    "schedule": "none",
    "eval_tokens": 128,
    "interval": 4,
}
#: Argument -> another value of it.
CHANGES = {
    "preset": "nano-wide",
    "data": "synthetic:4",
    "tokenizer": "bpe:300",
    "optimizer": "adamw",
    "base_lr": 2e-3,
    "base_weight_decay": 0.9,
    "batch_tokens": 96,
    "sequence_length": 64,
    "num_steps": 9,
    "schedule": "cosine",
    "eval_tokens": 256,
    "interval": 2,
}


class Braking:
    """High rate at the start, base rate at the end."""

    spec = ControllerSpec(channels=[("lr", "run")], observation=["progress"])

    def act(self, observations):
        return np.float32(0.8) * (1 - observations[:, :1])


class Failing(Braking):
    """Raises at the first decision."""

    def act(self, observations):
        raise RuntimeError("no idea")


class TwentyTimes(AtNeutral):
    """A baseline: twenty times the base rate."""

    def arguments(self, instance):
        return {"base_lr": 20 * instance.arguments["base_lr"]}


class Longer(AtNeutral):
    """No baseline: it makes the problem another one."""

    def arguments(self, instance):
        return {"num_steps": 10 * instance.arguments["num_steps"]}


class Counting(Braking):
    """Learns from whatever it has seen since it was made."""

    def __init__(self):
        self.seen = 0

    def act(self, observations):
        self.seen += 1
        return np.full((len(observations), 1), min(1.0, 0.1 * self.seen), np.float32)


def tiny_suite(num_seeds=3, block_size=2):
    instances = (
        Instance("first", JEL, TINY),
        Instance("second", JEL, TINY | {"data": "synthetic:5"}),
        Instance("practice", JEL, TINY, "train"),
    )
    return Suite("tiny", "two instances of a test", num_seeds, block_size, instances)


def row_of(arguments, folder):
    """A row of Braking on an instance with these arguments."""
    suite = Suite("one", "one instance", 1, 1, (Instance("only", JEL, arguments),))
    (block,) = blocks_of(suite, Method("braking", Braking()), folder)
    compute_block(block)
    return read_rows([folder])[0]
