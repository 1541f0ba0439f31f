"""The search of past actions: planted optima, costs by hand, and never a worse trajectory."""

import itertools
import math

import numpy as np
import pytest

from hpenv.control.channels import CHANNELS
from tests.hpenv.closed_form import make
from train_agents.replays import EnvRuns, play_runs
from train_agents.trajectories import (
    Dials,
    Playing,
    Sweep,
    candidates,
    expected_cost,
    improve,
    split_decisions,
)

POSITIONS = Dials(False, np.full((2, 1), 0.1), np.array([False]))
MOVES = Dials(True, np.array([[0.05], [0.1]]), np.array([False]))
STEPS = (-0.5, -0.25, 0.25, 0.5)
HALVES = (Sweep(STEPS), *(Sweep(STEPS, lasting=False),) * 3)


class Planted:
    """A run whose final loss is a sum over its decisions of a function of the position.

    Its state is the position and the sum so far, so that a wrong state is a wrong loss.
    """

    def __init__(self, loss, dials, num_decisions, num_windows):
        self.windows = split_decisions(num_decisions, num_windows)
        self.loss, self.dials = loss, dials
        self.plays = []

    def begin(self):
        return np.zeros(1), 0.0

    def play(self, state, window, actions):
        self.plays.append((window, len(actions)))
        first, finals, states = self.windows[window].start, [], []
        starts = {each.start for each in self.windows[window + 1 :]}
        for row in actions:
            position, total = state
            saved = []
            for decision, action in enumerate(row, start=first):
                if decision in starts:
                    saved.append((position, total))
                if self.dials.moves:
                    largest = self.dials.largest[0 if action[0] < 0 else 1]
                    position = np.clip(position + action * largest, -1.0, 1.0)
                else:
                    position = action
                total += self.loss(decision, float(position[0]))
            finals.append(total)
            states.append(tuple(saved))
        return Playing(np.array(finals), lambda row: states[row])


def test_the_optimum_of_a_planted_schedule_is_found():
    levels = (0.75, -0.25, 0.5)
    runs = Planted(lambda d, x: (x - levels[d // 4]) ** 2, POSITIONS, 12, 3)
    found = improve(runs, POSITIONS, np.zeros((12, 1)), HALVES, [0])
    assert found.loss == 0.0
    assert np.array_equal(found.positions[:, 0], np.repeat(levels, 4))
    # Lasting changes alone get stuck.
    assert improve(runs, POSITIONS, np.zeros((12, 1)), HALVES[:1] * 4, [0]).loss > 0.0
    assert found.first_loss == pytest.approx(4 * sum(level**2 for level in levels))


def test_the_optimum_within_the_largest_moves_is_found():
    # From 0 to 0.5 with moves of at most 0.1: the fastest climb is the best there is.
    runs = Planted(lambda d, x: (x - 0.5) ** 2, MOVES, 10, 2)
    found = improve(runs, MOVES, np.zeros((10, 1)), HALVES, [0])
    climb = np.minimum(0.1 * np.arange(1, 11), 0.5)
    assert np.allclose(found.positions[:, 0], climb, atol=1e-6)
    assert found.loss == pytest.approx(np.square(climb - 0.5).sum(), abs=1e-6)
    assert np.allclose(found.actions[:5], 1.0, atol=1e-6) and not found.actions[6:].any()


def test_a_first_pass_that_is_optimal_is_kept():
    runs = Planted(lambda d, x: x**2, POSITIONS, 6, 3)
    found = improve(runs, POSITIONS, np.zeros((6, 1)), HALVES, [0])
    assert found.loss == found.first_loss == 0.0 and not found.changes
    assert not found.positions.any()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("moves", [True, False])
@pytest.mark.parametrize("num_windows", [1, 3, 5])
def test_a_rugged_loss_never_ends_higher_than_it_began(seed, moves, num_windows):
    table = np.random.default_rng(seed).normal(size=(7, 41))
    dials = MOVES if moves else POSITIONS

    def loss(decision, position):
        return float(table[decision, round(20 * position) + 20])

    runs = Planted(loss, dials, 7, num_windows)
    first = np.random.default_rng(seed).uniform(-0.3, 0.3, (7, 1))
    costs = []
    found = improve(runs, dials, first, HALVES, [0], costs.append)
    assert found.loss <= found.first_loss

    losses = [found.first_loss, *(change[2] for change in found.changes)]
    assert all(after < before for before, after in itertools.pairwise(losses))
    # The actions lead there, from the start.
    again = runs.play(runs.begin(), 0, found.actions[None])
    assert again.losses[0] == pytest.approx(found.loss, abs=1e-12)

    left = [7 - window.start for window in runs.windows]
    counted = sum(count * left[window] / 7 for window, count in runs.plays[:-1])
    assert found.num_runs == pytest.approx(counted) == pytest.approx(sum(costs))


def test_the_expected_cost_is_that_by_hand():
    # 2 windows and 4 changes: 4 whole runs and 4 halves, after the first pass.
    assert expected_cost(2, [Sweep((1, 2, 3, 4))], 1) == 7.0
    runs = Planted(lambda d, x: -x, POSITIONS, 8, 2)
    found = improve(runs, POSITIONS, np.zeros((8, 1)), [Sweep((-0.1, -0.2, 0.1, 0.2))], [0])
    assert found.num_runs == 7.0


def test_every_cell_is_changed_from_the_window_on():
    tried = candidates(np.zeros((4, 2)), slice(1, 3), Sweep((-0.5, 2.0)), [0, 1])
    assert tried.shape == (4, 4, 2)
    assert tried[0].tolist() == [[0.0, 0.0]] + [[-0.5, 0.0]] * 3
    assert tried[3].tolist() == [[0.0, 0.0]] + [[0.0, 1.0]] * 3
    (short,) = candidates(np.zeros((4, 2)), slice(1, 3), Sweep((0.5,), lasting=False), [1])
    assert short.tolist() == [[0.0, 0.0], [0.0, 0.5], [0.0, 0.5], [0.0, 0.0]]


def test_windows_are_all_decisions_in_order():
    windows = split_decisions(7, 3)
    assert [list(range(7))[window] for window in windows] == [[0, 1], [2, 3, 4], [5, 6]]
    with pytest.raises(ValueError, match="num_windows must be from 1 to the 3 decisions"):
        split_decisions(3, 4)


def test_actions_lead_from_a_position_towards_another_as_far_as_moves_go():
    positions = np.array([[0.0], [0.2], [0.2], [0.2]])
    wanted = np.array([[0.05], [0.15], [-1.0], [0.2]])
    assert np.allclose(MOVES.actions(positions, wanted), [[0.5], [-1.0], [-1.0], [0.0]])
    assert np.array_equal(POSITIONS.actions(positions, 2.0 * wanted), [[0.1], [0.3], [-1.0], [0.4]])
    still = Dials(True, np.zeros((2, 1)), np.array([False]))
    assert not still.actions(positions, wanted).any()


def test_one_sided_cells_are_reached_beyond_their_dead_zone():
    noise = Dials(True, np.full((2, 1), 0.2), np.array([True]))
    reached, actions = noise.follow(np.array([0.0, 0.2, 0.7, 0.7])[:, None, None])
    assert np.allclose(reached[:, 0, 0], [0.0, 0.2, 0.4, 0.6])
    assert np.allclose(actions[:, 0, 0], [0.0, 0.5, 1.0, 1.0])


ARGUMENTS = {"mode": "DISABLED", "reward": {"progress": 1.0}, "num_steps": 40}


def test_the_optimum_of_an_environment_is_found_by_forks():
    """The loss of the fake plant falls by 1 - 0.01 m per step, m the multiplier of the rate."""
    env = make(1, **ARGUMENTS)
    dials = Dials.of(env)
    runs = EnvRuns(env, 3, 2)
    found = improve(runs, dials, np.zeros((4, 2)), [Sweep((-0.5, 0.5))] * 2, [0])
    initial = float(env.reset(seed=[3])[1]["probe_loss"][0])
    assert found.first_loss == pytest.approx(initial * 0.99**40)
    assert found.loss == 0.0  # at a rate of 100, of which one window is enough
    assert found.positions[:, 0].max() == 1.0 and not found.positions[:, 1].any()


def test_the_optimum_of_an_environment_with_moves_is_the_fastest_climb():
    env = make(1, mapping="move", max_moves={"lr": [0.1, 0.2]}, **ARGUMENTS)
    initial = float(env.reset(seed=[3])[1]["probe_loss"][0])
    runs, sweeps = EnvRuns(env, 3, 2), [Sweep((-0.4, 0.4, 1.0))]
    found = improve(runs, Dials.of(env), np.zeros((4, 2)), sweeps, [0])
    rates = CHANNELS["lr"].values(np.array([0.2, 0.4, 0.6, 0.8]))
    assert np.allclose(found.positions[:, 0], [0.2, 0.4, 0.6, 0.8], atol=1e-6)
    assert found.loss == pytest.approx(initial * math.prod((1 - 0.01 * rates) ** 10), rel=1e-5)

    replay = make(2, mapping="move", max_moves={"lr": [0.1, 0.2]}, **ARGUMENTS)
    actions = np.repeat(found.actions[:, None], 2, axis=1)
    played = play_runs(replay, [3, 4], lambda decision, _: actions[decision])
    assert played.probe[0] == pytest.approx(found.loss)
    assert np.allclose(played.positions[:, 0, 0], [0.0, 0.2, 0.4, 0.6], atol=1e-6)
    assert played.observations.shape[:2] == played.alive.shape == (4, 2) and played.alive.all()


def test_a_copy_that_diverges_is_never_kept():
    env = make(1, diverges={0: 15}, **ARGUMENTS)
    found = improve(EnvRuns(env, 3, 2), Dials.of(env), np.zeros((4, 2)), [Sweep((0.5,))], [0])
    assert math.isinf(found.first_loss) and math.isinf(found.loss) and not found.changes


def test_environments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="env must have one row; got 2"):
        EnvRuns(make(2, **ARGUMENTS), 0, 2)
    blind = EnvRuns(make(1, mode="DISABLED", reward={"loss_change": 1.0}), 0, 2)
    with pytest.raises(ValueError, match="env must measure the probe loss"):
        blind.begin()
