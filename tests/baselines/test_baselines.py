"""Tests of baselines (exact at every step) and of searches (find the optimum, resume)."""

import itertools
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from baselines.run import SWEEPS, RunConfig, configurations, coordinate_search, main
from baselines.schedules import (
    BASELINES,
    HAND_TUNED,
    constant_multipliers,
    hand_tuned_rates,
    nanochat_rates,
    schedule_free_configurations,
)
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
from hpenv.pretraining.plant import PretrainingPlant

GROUPS = ("embedding", "unembedding", "matrix")
T = 23  # steps of the fixture `tiny`
UNIFORM = dict.fromkeys(GROUPS, 1e-3), dict.fromkeys(GROUPS, 1e-2)
NANOCHAT_LR = {
    "embedding": 0.3 * math.sqrt(12),
    "unembedding": 0.004 * math.sqrt(12),
    "matrix": 0.02,
}


def flat(t):
    return 1.0


def warmdown(t, steps=9):  # 40 % of 23 is 9.2
    return min(1.0, (T - t) / steps)


def half_cosine(t):
    return (1 + math.cos(math.pi * t / T)) / 2


def stable_decay(t):  # 2 % of 23 is no warmup, 20 % is 4.6
    return warmdown(t, 5)


def tuned():
    rates = json.loads(HAND_TUNED.read_text())["rates"]
    return rates["base_lr"], rates["base_weight_decay"]


def expected_of(name):
    """Returns base rates and schedules per group of learning rate and weight decay, written out."""
    table = {
        "constant": (*UNIFORM, flat),
        "constant_warmdown": (*UNIFORM, warmdown),
        "cosine": (*UNIFORM, half_cosine),
        "wsd": (*UNIFORM, stable_decay),
        "hand_tuned": (*tuned(), warmdown),
        "cosine_tuned": (*tuned(), half_cosine),
        "wsd_tuned": (*tuned(), stable_decay),
        "nanochat": (NANOCHAT_LR, {"embedding": 0.0, "unembedding": 0.0, "matrix": 0.2}, warmdown),
    }
    if name in table:
        lr, decay, schedule = table[name]
        return (
            lr,
            dict.fromkeys(GROUPS, schedule),
            decay,
            (lambda t: (T - t) / T) if name == "nanochat" else flat,
        )
    sweep, member = name.split("/")
    if sweep == "constant_multipliers":
        factor, _, suffix = member.partition("_")
        base = 10 ** (
            round(3 * math.log10(float(factor[1:]))) / 3 - 3
        )  # the name is rounded, the grid is thirds of a decade
        schedule = warmdown if suffix else flat
        return dict.fromkeys(GROUPS, base), dict.fromkeys(GROUPS, schedule), UNIFORM[1], flat
    lr, decay, warmup = (float(part.lstrip("lrwdamup")) for part in member.split("_"))
    length = round(warmup * T / 561)
    ramp = flat if length == 0 else lambda t: min(1.0, (t + 1) / length)
    free = ("embedding", "unembedding")
    return (
        dict.fromkeys(free, lr) | {"matrix": 0.02},
        dict.fromkeys(free, ramp) | {"matrix": warmdown},
        dict.fromkeys(free, decay) | {"matrix": 0.2},
        flat,
    )


ALL = configurations([*BASELINES, *SWEEPS], T)


@pytest.fixture
def used(monkeypatch):
    """Returns every rate that an optimizer gets: (tensor's name, row, step) -> (rate, decay)."""
    record = {}
    update = PretrainingPlant._update

    def recording(self, gradients, rates, moving):
        for group, table in rates.items():
            members = [name for name, own in self._groups.items() if own == group]
            for (k, name), row in itertools.product(enumerate(members), np.flatnonzero(moving)):
                numbers = (table.lr[row, k].item(), table.weight_decay[row, k].item())
                record[name, int(row), int(self.steps[row])] = numbers
        update(self, gradients, rates, moving)

    monkeypatch.setattr(PretrainingPlant, "_update", recording)
    return record


@pytest.mark.parametrize("name", ALL)
def test_a_baseline_is_its_closed_form_at_every_step_in_every_group(name, tiny, used):
    small = tiny | {
        "batch_tokens": 16,
        "eval_tokens": 64,
    }  # the test looks at the rates, not at the runs
    rows = evaluate_controller(None, ENV, small | ALL[name], [3])
    groups = {tensor: tensor if tensor in GROUPS else "matrix" for tensor, _, _ in used}
    assert set(groups.values()) == set(GROUPS)
    lr, schedule, decay, decay_schedule = expected_of(name)
    for i, row in enumerate(rows):
        steps = {step for tensor, r, step in used if r == i}
        assert steps == set(range(row["steps"][-1]))
        assert row["divergence_reason"] is not None or len(steps) == T
        assert all(set(values) == {1.0} for values in row["panel"].values())
    for (tensor, _, step), (rate, wd) in used.items():
        group = groups[tensor]
        assert rate == pytest.approx(lr[group] * schedule[group](step), rel=1e-6, abs=1e-12), (
            tensor,
            step,
        )
        assert wd == pytest.approx(decay[group] * decay_schedule(step), rel=1e-6, abs=1e-12), (
            tensor,
            step,
        )


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_says_what_it_is_and_where_it_comes_from(name):
    baseline = BASELINES[name](T)
    assert baseline.name == name and baseline.source and baseline.doc
    assert set(baseline.env_kwargs) >= {"base_lr", "base_weight_decay", "schedule"}


def test_no_two_baselines_are_the_same():
    texts = [
        repr(sorted(kwargs.items()))
        for kwargs in configurations([*BASELINES, *SWEEPS], 561).values()
    ]
    assert len(set(texts)) == len(texts) == len(BASELINES) + 14 + 16


def test_nanochats_rates_are_the_papers_at_its_size():
    rates = nanochat_rates("jel-73m")
    assert rates["base_lr"] == pytest.approx(
        {"embedding": 0.424264, "unembedding": 0.0056569, "scalar": 0.005, "matrix": 0.02}, rel=1e-4
    )
    assert rates["base_weight_decay"] == {
        "embedding": 0,
        "unembedding": 0,
        "scalar": 0,
        "matrix": pytest.approx(0.8),
    }


def test_the_schedule_free_sweep_is_table_3():
    for reading, optimizer in (
        ("sgd", "schedule_free_sgd_muon"),
        ("adamw", "schedule_free_adamw_muon"),
    ):
        found = schedule_free_configurations(reading, 561)
        assert {kwargs["optimizer"] for kwargs in found.values()} == {optimizer}
        assert [
            (k["base_lr"]["embedding"], k["base_weight_decay"]["unembedding"],
             k["schedule"]["embedding"].warmup_steps)
            for k in found.values()
        ] == [(0.5, 0, 0), (0.5, 0.01, 0), (1, 0, 0), (1, 0.01, 0), (2, 0, 0), (2, 0.01, 0),
              (1, 0.01, 100),
              (1, 0.01, 300)]  # fmt: skip
    assert set(
        schedule_free_configurations("sgd", 561, "jel-73m")["lr2_wd0_warmup0"]["base_lr"]
    ) == {*GROUPS, "scalar"}
    with pytest.raises(ValueError, match=r"reading must be one of .*'sgd'.*got 'adam'"):
        schedule_free_configurations("adam", 561)


def test_the_multipliers_are_a_log_grid_of_the_base():
    rates = sorted({kwargs["base_lr"] for kwargs in constant_multipliers(561).values()})
    assert rates[0] == pytest.approx(1e-3) and rates[-1] == pytest.approx(0.1)
    assert np.diff(np.log(rates)) == pytest.approx(np.full(6, math.log(100) / 6))


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


def bowl(point):
    """Returns a score with its minimum at a = 8, b = 0.5."""
    return abs(math.log2(point["a"]) - 3) + abs(math.log2(point["b"]) + 1)


def test_coordinate_search_walks_to_the_optimum_of_every_coordinate(tmp_path):
    best, history = coordinate_search(bowl, {"a": 1.0, "b": 1.0})
    assert best == {"a": 8.0, "b": 0.5}
    assert history[0]["point"] == {"a": 1.0, "b": 1.0}
    points = [tuple(line["exponents"]) for line in history]
    assert (
        len(set(points)) == len(points) == 10
    )  # 0 to 4 along a; 1, -1, -2 along b; then 4 and 2 along a again


def test_coordinate_search_keeps_to_its_budget_and_to_its_log(tmp_path):
    log, calls = tmp_path / "log.jsonl", []

    def counted(point):
        calls.append(point)
        return bowl(point)

    best, history = coordinate_search(counted, {"a": 1.0, "b": 1.0}, max_evaluations=3, log=log)
    assert len(calls) == len(history) == 3 and best == {"a": 4.0, "b": 1.0}
    best, history = coordinate_search(counted, {"a": 1.0, "b": 1.0}, log=log)
    assert len(calls) == len(history) == 10 and best == {"a": 8.0, "b": 0.5}
    with pytest.raises(ValueError, match="must be the log of the search"):
        coordinate_search(counted, {"a": 2.0, "b": 1.0}, log=log)
    with pytest.raises(ValueError, match="max_evaluations must be >= 1; got 0"):
        coordinate_search(counted, {"a": 2.0}, max_evaluations=0)


def test_an_unknown_baseline_is_named_with_what_is_accepted():
    with pytest.raises(ValueError, match=r"baselines must be of .*'constant_warmdown'.*got 'best'"):
        configurations(["best"], 561)


TINY = ("--data", "synthetic", "--batch-tokens", "64", "--sequence-length", "16", "--num-steps",
        "6", "--interval", "3",
        "--eval-tokens", "512")  # fmt: skip


def test_the_program_evaluates_what_it_is_asked_to(tmp_path, capsys):
    out = tmp_path / "rows.json"
    main(["--baselines", "constant", "cosine", "--seeds", "2", "--out", str(out), *TINY])
    result = json.loads(out.read_text())
    assert [(row["baseline"], row["seed"]) for row in result["rows"]] == [
        ("constant", 1000),
        ("constant", 1001),
        ("cosine", 1000),
        ("cosine", 1001),
    ]
    assert (
        all(0 < row["bpb"] < 8.2 for row in result["rows"])
        and result["configuration"]["num_steps"] == 6
    )
    printed = capsys.readouterr().out
    assert "cosine" in printed and '"num_steps": 6' in printed


def test_the_program_tunes_on_the_probe_alone(tmp_path, capsys, monkeypatch):
    def forbidden(self):
        raise AssertionError("tuning read the validation slice")

    monkeypatch.setattr(PretrainingPlant, "evaluate", forbidden)
    tuned_file, log = tmp_path / "tuned.json", tmp_path / "log.jsonl"
    arguments = [
        "--tune",
        "--max-evaluations",
        "3",
        "--tuned",
        str(tuned_file),
        "--log",
        str(log),
        *TINY,
    ]
    main(arguments)
    found = json.loads(tuned_file.read_text())
    assert len(found["history"]) == 3 and len(Path(log).read_text().splitlines()) == 4
    assert found["probe_loss"] == min(line["score"] for line in found["history"])
    main(arguments)  # all in the log
    assert json.loads(tuned_file.read_text())["rates"] == found["rates"]
    assert "probe loss" in capsys.readouterr().out
