"""Training on the train instances of a suite: order, rates, and runs that continue."""

import json
import math
from dataclasses import replace

import pytest

from hpenv.benchmark.instances import Instance, Suite
from hpenv.policies import load_policy
from tests.hpenv.benchmark.tiny_suite import JEL, TINY
from train_agents.tasks import Tasks
from train_agents.train import TrainConfig, train


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    instances = [
        Instance(f"train-{steps}", JEL, TINY | {"num_steps": steps, "interval": 2}, "train")
        for steps in (4, 6, 8)
    ]
    test = Instance("test", JEL, TINY)
    file = tmp_path_factory.mktemp("suite") / "made.json"
    file.write_text(Suite("made", "three lengths", 2, 2, (*instances, test)).text())
    return str(file)


def test_every_instance_comes_once_before_one_comes_again(suite):
    tasks = Tasks(suite, {"interval": 1}, 0.0, seed=3)
    names = [tasks[update].name for update in range(12)]
    for first in range(0, 12, 3):
        assert set(names[first : first + 3]) == {"train-4", "train-6", "train-8"}
    assert len({tuple(names[first : first + 3]) for first in range(0, 12, 3)}) > 1
    assert tasks[0].arguments["interval"] == 1
    assert tasks[5] == Tasks(suite, {"interval": 1}, 0.0, seed=3)[5]


def test_rates_are_drawn_anew_within_the_decades(suite):
    tasks, plain = Tasks(suite, {}, 2.0, seed=0), Tasks(suite, {}, 0.0, seed=0)
    factors = []
    for update in range(60):
        assert tasks[update].name == plain[update].name
        factors.append(
            tasks[update].arguments["base_lr"] / plain[update].arguments.get("base_lr", 1e-3)
        )
    logs = [math.log10(factor) for factor in factors]
    assert -2.01 <= min(logs) < -1.5 and 1.5 < max(logs) <= 2.01
    assert abs(sum(logs) / len(logs)) < 0.5


def test_a_training_on_a_suite_continues_bitwise_and_says_its_timesteps(suite, tmp_path):
    config = TrainConfig(
        suite=suite,
        lr_decades=1.0,
        env_kwargs=('channels=[["lr","group"]]',),
        num_updates=4,
        episodes_per_update=2,
        num_envs=2,
        out=tmp_path / "whole",
        tensorboard=False,
    )
    train(config)
    parts = replace(config, out=tmp_path / "parts")
    train(replace(parts, num_updates=2))
    train(parts)
    whole, again = (
        [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
        for folder in (config.out, parts.out)
    )
    assert whole == again
    assert sorted(len(line["decisions"]) for line in whole[:3]) == [2, 3, 4]

    last = json.loads((config.out / "progress.jsonl").read_text().splitlines()[-1])
    decisions = sum(2 * len(line["decisions"]) for line in whole)
    assert last["step"] == decisions
    assert list(load_policy(config.out).spec.action_names) == [
        "lr/embedding", "lr/matrix", "lr/unembedding",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"suite": "jel-nano"}, "suite must have train instances; jel-nano has none"),
        ({"suite": "pretraining-v2"}, "suite must be one of"),
        ({"lr_decades": 1.0}, "lr_decades must be from 0 to 4, and 0 without a suite"),
    ],
)
def test_errors_say_what_is_accepted(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(TrainConfig(out=tmp_path / "run", **arguments))
    assert not (tmp_path / "run").exists()
