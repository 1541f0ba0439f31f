"""Teachers act as their closed forms, and their data sets are written."""

import numpy as np
import pytest

pytest.importorskip("minari")
pytest.importorskip("pyarrow")

from hpenv.benchmark.environments import make_population
from hpenv.optim.schedules import Constant
from hpenv.policies import Neutral, save_policy
from tests.hpenv.envs.every_id import JEL
from tests.hpenv.envs.small_arguments import SMALL
from train_agents.make_datasets import TEACHERS, DatasetsConfig, main, make_datasets, plan_of

LONG = SMALL[JEL] | {"num_steps": 100, "interval": 10}


def multipliers_of(name, peak=10.0):
    """The multipliers of the learning rate that a teacher's actions set in a run."""
    env = make_population(JEL, 1, LONG | {"preset": "nano"})
    controller, _ = TEACHERS[name](env, peak)
    observations, _ = env.reset(seed=[0])
    found = []
    for _ in range(env.num_decisions):
        observations, _, _, _, infos = env.step(controller.act(observations))
        found.append((infos["panel/lr"][0], infos["panel/weight_decay"][0]))
    env.close()
    return np.array(found)


def test_schedules_set_their_multipliers_at_the_first_step_of_each_decision():
    steps = np.arange(10) * 10
    expected = {
        "constant": np.full(10, 10.0),
        "cosine": 10 * (1 + np.cos(np.pi * steps / 100)) / 2,
        # 2 steps of warmup: step 0 is at half. The last 20 steps go down to 0.
        "wsd": np.array([5.0] + [10.0] * 8 + [5.0]),
    }
    for name, values in expected.items():
        found = multipliers_of(name)
        assert found[:, 0] == pytest.approx(np.clip(values, 0.01, 100), rel=1e-5), name
        assert (found[:, 1] == 1.0).all()


def test_a_schedule_is_refused_where_the_actions_have_no_rate():
    env = make_population(JEL, 1, LONG | {"channels": ["weight_decay"]})
    with pytest.raises(ValueError, match="must be positions with a cell of lr"):
        plan_of(env, Constant(), 1.0)


def test_random_positions_are_in_the_box_and_those_of_their_seed():
    env = make_population(JEL, 1, LONG)
    controllers = [TEACHERS["random"](env, 1.0)[0] for _ in range(2)]
    for controller in controllers:
        controller.reset(None)
    first, second = (controller.act(np.zeros((3, 1))) for controller in controllers)
    assert np.array_equal(first, second) and np.abs(first).max() <= 1 and len(np.unique(first)) == 6


def test_every_teacher_and_a_trained_policy_have_a_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    save_policy(Neutral(2), tmp_path / "policy")
    config = DatasetsConfig(controller=str(tmp_path / "policy"), episodes=2)
    datasets = make_datasets(config, SMALL[JEL] | {"preset": "nano"})
    assert [dataset.spec.dataset_id for dataset in datasets] == [
        f"hpenv/{name}-v0" for name in (*TEACHERS, "trained")
    ]
    for dataset in datasets:
        assert dataset.total_episodes == 2 and dataset.total_steps == 6
    hand_tuned = datasets[list(TEACHERS).index("hand_tuned")]
    assert "embedding" in hand_tuned.recover_environment().spec.kwargs["base_lr"]


def test_an_unknown_teacher_ends_the_program(capsys):
    with pytest.raises(SystemExit) as refused:
        main(["--teachers", "oracle"])
    assert refused.value.code == 2
