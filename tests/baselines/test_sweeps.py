"""Sweeps and searches that find the optimum and resume."""

import json
import math
from functools import partial

import numpy as np
import pytest

from baselines.run import RunConfig
from baselines.schedules import HAND_TUNED, hand_tuned_rates, nanochat_rates
from baselines.sweeps import (
    ENV,
    CMAStrategy,
    Outcomes,
    Population,
    RandomStrategy,
    cma_search,
    random_search,
    search,
)
from hpenv.benchmark.evaluate import evaluate_controller

GROUPS = ("embedding", "unembedding", "matrix")


def test_the_hand_tuned_rates_are_the_best_point_of_their_search_on_seeds_that_nothing_is_reported_on():  # noqa: E501
    found = json.loads(HAND_TUNED.read_text())
    best = min(found["history"], key=lambda line: line["score"])
    assert found["probe_loss"] == best["score"] <= found["start"]["probe_loss"]
    assert found["rates"]["base_lr"] == {group: best["point"][f"lr/{group}"] for group in GROUPS}
    assert found["rates"]["base_weight_decay"] == {
        "embedding": 0,
        "unembedding": 0,
        "matrix": best["point"]["weight_decay/matrix"],
    }
    assert found["start"]["rates"] == nanochat_rates("nano")
    config = RunConfig()
    assert not set(found["seeds"]) & set(range(config.first_seed, config.first_seed + 1000))
    assert found["env_kwargs"] == config.env_kwargs()
    with pytest.raises(
        ValueError, match="preset must be 'nano' for hand-tuned rates; got 'jel-73m'"
    ):
        hand_tuned_rates("jel-73m")


class Target:
    """An evaluator with a known optimum: the return is minus the squared distance to a schedule."""

    num_rows, shape = 8, (12, 2)
    goal = np.random.default_rng(5).uniform(-0.8, 0.8, (12, 2))

    def __init__(self, limit=None):
        self.played, self.limit = [], limit

    def play(self, positions, seeds):
        if len(self.played) == self.limit:
            raise KeyboardInterrupt
        self.played.append(list(seeds))
        assert positions.shape == (8, 12, 2) and (np.abs(positions) <= 1).all()
        returns = -((positions - self.goal) ** 2).sum((1, 2))
        return Outcomes(returns, -returns)


STRATEGIES = {
    "cma": partial(CMAStrategy, 8, Target.shape),
    "schedule": partial(RandomStrategy, 8, Target.shape, kind="schedule"),
    "constant": partial(RandomStrategy, 8, Target.shape, kind="constant"),
}


def test_cma_finds_the_optimum_and_random_search_does_not():
    found, history = search(STRATEGIES["cma"](0), Target(), 1200, 0)
    assert np.abs(found.positions - Target.goal).max() < 0.02
    assert history[-1]["best_return"] > -0.01
    _, random_history = search(STRATEGIES["schedule"](0), Target(), 1200, 0)
    assert random_history[-1]["best_return"] < -2.0


@pytest.mark.parametrize("kind", ["schedule", "constant"])
def test_random_search_ends_with_the_best_of_what_it_played(kind):
    target = Target()
    found, history = search(STRATEGIES[kind](3), target, 80, 3)
    returns = [value for line in history for value in line["returns"]]
    assert len(returns) == 80 and history[-1]["best_return"] == max(returns)
    assert -((found.positions - target.goal) ** 2).sum() == pytest.approx(max(returns), rel=1e-5)
    rows = {tuple(row) for row in found.positions.tolist()}
    assert len(rows) == (1 if kind == "constant" else 12)


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_interrupted_search_goes_on_bitwise(name, tmp_path):
    log = tmp_path / "log.jsonl"
    whole, history = search(STRATEGIES[name](1), Target(), 96, 1)
    with pytest.raises(KeyboardInterrupt):
        search(STRATEGIES[name](1), Target(limit=5), 96, 1, log)
    with log.open("a") as file:
        file.write('{"generation": 5, "returns": [0.')  # torn
    target = Target()
    resumed, resumed_history = search(STRATEGIES[name](1), target, 96, 1, log)
    assert np.array_equal(resumed.positions, whole.positions)
    assert resumed_history == history
    assert len(target.played) == 12 - 5
    again = Target(limit=0)
    done, _ = search(STRATEGIES[name](1), again, 96, 1, log)
    assert np.array_equal(done.positions, whole.positions)


def test_the_log_of_another_search_is_refused(tmp_path):
    log = tmp_path / "log.jsonl"
    search(STRATEGIES["cma"](1), Target(), 16, 1, log, {"method": "cma"})
    with pytest.raises(ValueError, match="must be the log of the search"):
        search(STRATEGIES["cma"](2), Target(), 16, 2, log, {"method": "cma"})
    with pytest.raises(ValueError, match="must be what this search proposes"):
        search(STRATEGIES["schedule"](1), Target(), 16, 1, log, {"method": "cma"})


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_search_is_a_function_of_its_seed_and_leaves_the_global_generator_alone(name):
    kind, keys, position, *rest = np.random.get_state()  # noqa: NPY002
    first, history = search(STRATEGIES[name](0), Target(), 32, 0)
    second, _ = search(STRATEGIES[name](0), Target(), 32, 0)
    other, other_history = search(STRATEGIES[name](1), Target(), 32, 1)
    assert np.array_equal(first.positions, second.positions)
    assert not np.array_equal(first.positions, other.positions)
    seeds = [seed for line in history + other_history for seed in line["seeds"]]
    assert len(set(seeds)) == 64  # fresh in every generation
    after = np.random.get_state()  # noqa: NPY002
    assert (after[0], after[2], *after[3:]) == (kind, position, *rest) and np.array_equal(
        after[1], keys
    )


#: Changes of the fixture `tiny`, which keep its three decisions.
SMALLER = {"batch_tokens": 16, "eval_tokens": 64, "num_steps": 6, "interval": 2}


@pytest.mark.parametrize("episodes", [0, 12])
def test_a_budget_that_does_not_fit_is_refused(episodes):
    with pytest.raises(
        ValueError, match=f"num_episodes must be a positive multiple of the 8 rows; got {episodes}"
    ):
        search(STRATEGIES["cma"](0), Target(), episodes, 0)


def test_an_unknown_kind_of_random_search_is_refused():
    with pytest.raises(ValueError, match=r"kind must be one of .*got 'smooth'"):
        RandomStrategy(8, (12, 2), 0, "smooth")


def test_what_a_search_found_is_what_was_played(tiny):
    """The table as a policy, on the seed of its one run, reaches the loss of the search."""
    tiny |= SMALLER
    found, history = random_search(tiny, 6, 0, num_envs=2)
    assert found.positions.shape == (3, 2)
    line = max(history, key=lambda line: max(line["returns"]))
    row = int(np.argmax(line["returns"]))
    (deployed,) = evaluate_controller(found, ENV, tiny, [line["seeds"][row]])
    assert deployed["probe_loss"] == pytest.approx(line["probe_losses"][row], rel=1e-4)
    assert deployed["probe_curve"][0] - deployed["probe_loss"] == pytest.approx(
        line["returns"][row], rel=1e-3
    )


def test_searches_of_the_environment_resume_and_agree(tiny, tmp_path):
    log = tmp_path / "deep" / "log.jsonl"
    tiny |= SMALLER
    whole, history = cma_search(tiny, 8, 0, num_envs=4)
    cma_search(tiny, 4, 0, num_envs=4, log=log)
    resumed, resumed_history = cma_search(tiny, 8, 0, num_envs=4, log=log)
    assert np.array_equal(resumed.positions, whole.positions) and resumed_history == history
    assert np.abs(whole.positions).max() > 0
    with pytest.raises(ValueError, match="must be the log of the search"):
        random_search(tiny, 8, 0, num_envs=4, log=log)


def test_a_run_that_diverges_is_worth_less_than_nothing(tiny):
    population = Population(tiny | {"base_lr": 1e3, "optimizer": "sgd"}, 2)
    outcomes = population.play(np.zeros((2, *population.shape)), [0, 1])
    assert (outcomes.returns <= -0.9).all()
    assert outcomes.probe_losses == pytest.approx([math.log(256)] * 2, abs=0.05)
