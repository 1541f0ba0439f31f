"""Credits from estimated effects: unbiased as a control variate, and by hand as the credit."""

import math

import numpy as np
import pytest

from agents.base import Rollout
from agents.credits import LinearPart
from agents.estimates import STREAMS, ControlledStream, EstimateStream
from agents.reinforce import ReinforceAgent
from agents.sidecar import Sidecar
from agents.sidecar_config import SidecarConfig
from hpenv.policies.controller import Columns
from tests.agents.small_sidecars import equal, make

TARGETS = np.array([0.4, 0.4, -0.3, -0.3])
ALIVE = np.ones(1, dtype=bool)


def part(effects, noise, std=0.1) -> LinearPart:
    return LinearPart(*(np.atleast_2d(np.float64(x)) for x in (effects, noise, std)))


def expectation(stream, rewards_of, effect) -> tuple[float, float]:
    """Mean and variance of a decision's gradient by the mean of one cell, times std.

    They are sums over the 9 nodes of Gauss and Hermite, which are exact for polynomials of the
    sample up to degree 17. Advantages are multiplied by their root mean square again.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    before, found = stream.arrays(), []
    for noise in nodes:
        stream.restore(before)
        got = stream.push(np.array([rewards_of(noise)]), ALIVE, part([effect], [noise]))
        slope = got.slopes[0] if got.slopes else np.zeros((1, 1))
        found.append(((got.values * noise + slope) * (got.rms + 1e-8)).item())
    stream.restore(before)
    mean = weights @ found / weights.sum()
    return mean, weights @ (np.array(found) - mean) ** 2 / weights.sum()


@pytest.mark.parametrize("effect", [0.0, 2.0, -7.0])
def test_a_control_variate_does_not_change_the_expectation_of_the_gradient(effect):
    config = SidecarConfig(delay=0, advantage_clip=1e9, baseline_decay=0.5, effect_decay=0.5)

    def rewards_of(noise):
        return 0.2 + 2.0 * 0.1 * noise - 0.05 * noise**2 + 0.01 * noise**3

    means, variances = [], []
    for name in ("reward", "control_variate"):
        stream = STREAMS[name](1, [False], config)
        for noise in (0.3, -1.0, 0.8):
            stream.push(np.array([rewards_of(noise)]), ALIVE, part([effect], [noise]))
        mean, variance = expectation(stream, rewards_of, effect)
        means.append(mean), variances.append(variance)
    # E[R noise] = 0.2 + 3 x 0.01, whatever the effects
    assert means == pytest.approx([0.23, 0.23], abs=1e-9)
    if effect == 2.0:  # the slope of the reward
        assert variances[1] < 0.7 * variances[0]
    if effect == -7.0:
        assert variances[1] > variances[0]


def test_an_effect_of_the_decision_itself_is_not_in_its_control_variate():
    """Its effect may depend on its sample. Those of the past do not."""
    config = SidecarConfig(delay=0, effect_decay=0.5)
    found = []
    for last in (1.0, 99.0):
        stream = ControlledStream(1, [False], config)
        for effect, noise in ((1.0, 0.5), (3.0, -0.5), (last, 2.0)):
            got = stream.push(np.array([noise]), ALIVE, part([effect], [noise]))
        found.append(got)
    assert found[0].slopes[0] == found[1].slopes[0] != 0 and found[0].values == found[1].values
    # the mean of 1 and 3, the newer twice as heavy, times 0.1 and the sample
    assert found[0].credits.item() == pytest.approx(2.0 - (1 + 2 * 3) / 3 * 0.1 * 2.0)


def test_a_control_variate_waits_for_the_rewards_of_its_decision():
    config = SidecarConfig(delay=1, horizon=2, effect_decay=0.5)
    stream = ControlledStream(1, [False], config)
    pushes = [(1.0, 0.5), (3.0, -0.5), (5.0, 2.0), (7.0, 1.0)]
    got = [stream.push(np.zeros(1), ALIVE, part([e], [n])) for e, n in pushes]
    assert got[:2] == [None, None] and stream.num_waiting == stream.span == 2
    assert got[2].credits.item() == 0.0  # no effect was known at the first decision
    assert got[3].credits.item() == pytest.approx(-1.0 * 0.1 * -0.5)


def test_the_estimate_as_credit_by_hand():
    stream = EstimateStream(1, [False], SidecarConfig(scale_decay=0.5, advantage_clip=1.2))
    first = stream.push(np.array([np.inf]), ALIVE, part([2.0], [5.0]))
    assert first.values.tolist() == [[0.0]] and first.slopes[0].item() == pytest.approx(1.0)
    second = stream.push(np.array([0.0]), ALIVE, part([-4.0], [5.0]))
    rms = 0.1 * math.sqrt((4.0 + 2 * 16.0) / 3)
    assert second.rms.item() == pytest.approx(rms)
    assert second.slopes[0].item() == pytest.approx(-0.4 / rms)
    assert stream.push(np.zeros(1), ALIVE, part([90.0], [0.0])).slopes[0].item() == 1.2
    assert not stream.push(np.zeros(1), ~ALIVE, part([90.0], [0.0])).slopes[0].any()


def play(config, effects_of, num_decisions=300, num_rows=8, rewarded=True):
    """Trains on -sum (u - target)^2 with effects. Returns the agent."""
    agent, generator = make(config, num_rows, immediate=(False,) * 4), np.random.default_rng(0)
    obs = np.full((1, num_rows, 3), 0.5, dtype=np.float32)
    for _ in range(num_decisions):
        decision = agent.sample(obs[0])
        reward = -((decision.action - TARGETS) ** 2).sum(1) * rewarded
        reward = reward + generator.normal(0.0, 0.02, num_rows)
        effects = effects_of(decision.action)[None]
        given = (decision.raw[None], decision.log_prob[None], reward[None])
        agent.update(Rollout(obs, *given, np.ones((1, num_rows), dtype=bool), effects), True)
    return agent


@pytest.mark.parametrize(
    ("credit", "scale", "rewarded"),
    [("estimate", 1.0, False), ("control_variate", 1.0, True), ("control_variate", -0.5, True)],
)
@pytest.mark.parametrize("common", [False, True])
def test_means_move_to_their_targets(credit, scale, rewarded, common):
    """Without rewards by the effects alone, and by rewards though the effects are wrong."""
    config = SidecarConfig(
        hidden_size=16, delay=0, credit=credit, learning_rate=0.3, common=common,
        initial_std={"scale": 0.1},
    )  # fmt: skip
    agent = play(config, lambda u: -2.0 * scale * (u - TARGETS), 400, rewarded=rewarded)
    mean = agent.policy.act(np.full((8, 3), 0.5, dtype=np.float32))
    assert np.abs(mean.mean(axis=0) - TARGETS).max() < 0.07


@pytest.mark.parametrize("credit", ["control_variate", "estimate"])
def test_loaded_it_continues_bitwise(credit, tmp_path):
    config = SidecarConfig(hidden_size=8, replay_size=4, delay=1, evidence=0.0, credit=credit)
    agent = play(config, lambda u: TARGETS - u, 6, 2)
    agent.save(tmp_path)
    other = make(config, 2, immediate=(False,) * 4)
    other.load(tmp_path)
    obs = np.full((1, 2, 3), 0.5, dtype=np.float32)
    for one in (agent, other):
        decision = one.sample(obs[0])
        given = (decision.raw[None], decision.log_prob[None], np.ones((1, 2)))
        alive = np.ones((1, 2), dtype=bool)
        one.update(Rollout(obs, *given, alive, np.ones((1, 2, 4))), True)
    assert equal(numbers_of(agent), numbers_of(other))


def numbers_of(agent: ReinforceAgent) -> list:
    return list(agent._tensors().values())


@pytest.mark.parametrize("effects", [None, np.zeros((1, 2, 3))])
def test_effects_that_do_not_fit_are_refused(effects):
    agent = make(SidecarConfig(hidden_size=8, credit="estimate"))
    obs = np.zeros((1, 2, 3), dtype=np.float32)
    decision = agent.sample(obs[0])
    given = (decision.raw[None], decision.log_prob[None], np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"effects must have shape \(1, 2, 4\)"):
        agent.update(Rollout(obs, *given, np.ones((1, 2), dtype=bool), effects), True)


def test_a_sidecar_reads_the_longest_memory_that_the_rest_of_the_run_has_room_for():
    config = SidecarConfig(hidden_size=4, credit="estimate", effects={"long": 3, "short": 0})
    sidecar = Sidecar(config)
    assert sidecar.reads == ("long", "short") and Sidecar().reads == ()
    sidecar.reset(Columns(1, 4, ("a",), ("lr", "register/0"), ("scale", "register"), (False,) * 2))
    seen = []
    update = sidecar.agent.update

    def noted(rollout, continues):
        seen.append(rollout.effects[0, 0].tolist())
        return update(rollout, continues)

    sidecar.agent.update = noted
    for _ in range(4):
        sidecar.act(np.zeros((1, 1)))
        sidecar.learn(np.zeros(1), ALIVE, {"long": np.array([[2.0]]), "short": np.array([[1.0]])})
    assert seen == [[2.0, 0.0], [2.0, 0.0], [1.0, 0.0], [1.0, 0.0]]


def test_a_configuration_without_the_new_fields_has_the_text_of_older_results():
    assert "effect" not in repr(SidecarConfig()) and "credit=" not in repr(SidecarConfig())
    assert "credit='estimate'" in repr(SidecarConfig(credit="estimate"))
    with pytest.raises(ValueError, match="credit must be one of"):
        SidecarConfig(credit="truth")
    with pytest.raises(ValueError, match="with 0 decisions left"):
        SidecarConfig(effects={"cell_effect": 1})
