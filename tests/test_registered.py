"""Contracts that every registered id keeps, and those of the arguments of each.

Past the usual length, because the contracts of all ids stand in one file.
"""

import dataclasses
import importlib
import itertools
import json
import math
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

import hpenv  # noqa: F401  registers the ids
from hpenv import branching
from hpenv.control.channels import CHANNELS, channels_of
from hpenv.envs import cell, grpo_projection, jel
from hpenv.optim.schedules import Constant, Cosine, WarmupFlatWarmdown
from hpenv.plant import snapshots
from hpenv.plot import RIGHT
from hpenv.posttraining.config import GRPOConfig
from hpenv.posttraining.measurements import GAUGE_NAMES, PRIVILEGED_NAMES
from hpenv.posttraining.sandbox import kernel, syscalls
from hpenv.pretraining.measurements import MEASUREMENTS
from hpenv.render import CELLS
from hpenv.telemetry.rewards import measured_terms
from tests import tiny_student
from train_agents import evaluate

ROOT = Path(__file__).resolve().parent.parent
IDS = sorted(id for id, spec in gym.registry.items() if str(spec.entry_point).startswith("hpenv."))
JEL, CELL, PROJECTION = jel.ID, cell.ID, grpo_projection.ID
# The checkers play many episodes; these take a few steps.
FIVE = {"num_steps": 5, "interval": 2}
SHORT = dict.fromkeys(IDS, FIVE) | {
    PROJECTION: {"num_steps": 3, "interval": 2, "num_prompts": 1, "num_probe_problems": 1},
}


def together(**tables):
    """Every key of every table at least once, in as few combinations as possible.

    There are as many as the longest table has keys.
    """
    longest = max(map(len, tables.values()))
    cycles = {
        name: itertools.islice(itertools.cycle(table), longest) for name, table in tables.items()
    }
    return [dict(zip(cycles, keys, strict=True)) for keys in zip(*cycles.values(), strict=True)]


# Arguments under which an id is held to its contract: every surface and every observation.
MODULES = {id: str(gym.spec(id).entry_point).partition(":")[0] for id in IDS}
SPECS = {id: importlib.import_module(module).SPEC for id, module in MODULES.items()}
VARIANTS = {
    id: together(observation=spec.observations, channels=spec.channel_sets)
    for id, spec in SPECS.items()
}
# Those under which all that an id can draw is drawn, and all that it can measure is measured.
RICHEST = VARIANTS | {
    JEL: [{"observation": "full", "channels": "per_optimizer"}],
    CELL: [
        {"channels": surface, "observation": "full_position"}
        for surface in ("full", "foundational_momentum_blend")
    ],
    PROJECTION: [{"channels": "full", "observation": "full"}],
}
# Arguments under which a test of an id takes a fraction of a second: three decisions, the last one
# shorter.
QUICK = {
    "batch_tokens": 32,
    "sequence_length": 16,
    "num_steps": 7,
    "interval": 3,
    "eval_tokens": 256,
}
SMALL = dict.fromkeys(set(IDS) - {PROJECTION}, QUICK) | {CELL: QUICK | {"preset": "nano"}}
# Programs are executed where the kernel can hold them alone.
MISSING = kernel.missing_support(syscalls.NUMBERS)
executes = pytest.mark.skipif(bool(MISSING), reason=f"programs cannot be executed here: {MISSING}")
MARKS = dict.fromkeys(IDS, ()) | {PROJECTION: executes}


def cases(variants):
    return [
        pytest.param(id, variant, id=f"{id}-{'-'.join(variant.values())}", marks=MARKS[id])
        for id in IDS
        for variant in variants[id]
    ]


EVERY_ID = pytest.mark.parametrize("id", [pytest.param(id, marks=MARKS[id]) for id in IDS])


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory):
    """A random student in whose vocabulary every other short text compiles.

    So rewards differ.
    """
    folder = tmp_path_factory.mktemp("students") / "tiny"
    tiny_student.student(3, seed=5, end=6.0).save(folder, {})
    return str(folder)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """A text of 20,000 letters, which other processes read in no time."""
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_bytes(
        np.random.default_rng(0).choice(list(b"abcdefgh \n"), 20_000).astype(np.uint8).tobytes()
    )
    return str(file)


@pytest.fixture
def tiny_projection(student_folder):
    """As `tiny`: three decisions, of 2, 2 and 1 updates; directions come from few pairs."""
    with tiny_student.few_pairs():
        yield tiny_student.TINY | {
            "num_samples": 2,
            "num_steps": 5,
            "interval": 2,
            "student": student_folder,
        }


@pytest.fixture
def every_small(request, text_file):
    """Id -> its small arguments, of the ids that can be run here."""
    own = {id: {"data": text_file} | SMALL[id] for id in IDS if id != PROJECTION}
    return own if MISSING else own | {PROJECTION: request.getfixturevalue("tiny_projection")}


@pytest.fixture
def small(id, request, text_file):
    if id == PROJECTION:
        return request.getfixturevalue("tiny_projection")
    return {"data": text_file} | SMALL[id]


def play(env, actions, seed=None):
    """Observations, rewards, ends and infos of an episode with these actions.

    Those of the reset come first.
    """
    obs, info = env.reset(seed=seed)
    result = [(obs, 0.0, False, False, info)]
    for action in actions:
        result.append(env.step(action))
        if np.all(result[-1][2]):
            break
    return result


def random_actions(env, count=3, seed=0):
    return (
        np.random.default_rng(seed)
        .uniform(-0.5, 0.5, (count, *env.action_space.shape))
        .astype(np.float32)
    )


def assert_same(left, right):
    assert len(left) == len(right)
    for ours, theirs in zip(left, right, strict=True):
        for a, b in zip(ours[:4], theirs[:4], strict=True):
            assert np.array_equal(a, b)
        assert repr(ours[4]) == repr(theirs[4])


def weights_of(env):
    """Copies of what is trained."""
    tensors = env.unwrapped.plant.snapshot().tensors
    return {
        name: value for name, value in tensors.items() if name.startswith(("weights/", "trained/"))
    }


def test_ids_are_registered():
    assert (
        {JEL, CELL, PROJECTION}
        <= set(IDS)
        == set(VARIANTS)
        == set(RICHEST)
        == set(SHORT)
        == set(MARKS)
    )
    assert set(SMALL) == set(IDS) - {PROJECTION}


@pytest.mark.parametrize(("id", "variant"), cases(VARIANTS))
def test_gymnasium_and_stable_baselines3_find_nothing_to_warn_of(id, variant, small):
    env = gym.make(id, **small | SHORT[id], **variant)
    check_env(env.unwrapped, skip_render_check=True)
    check_env_for_sb3(env)


@EVERY_ID
def test_gymnasium_finds_nothing_to_warn_of_in_render_and_close(id, small):
    check_env(gym.make(id, **small | SHORT[id], render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize(("id", "variant"), cases(VARIANTS))
def test_observations_lie_in_the_space_and_columns_have_names(id, variant, small):
    env = gym.make(id, **small, **variant)
    for obs, reward, _, _, _ in play(env, random_actions(env), seed=1):
        assert env.observation_space.contains(obs) and math.isfinite(reward)
    single = env.unwrapped
    assert env.observation_space.shape == (len(single.observation_names),)
    assert env.action_space.shape == (len(single.action_names),) == (len(single.action_kinds),)
    assert single.action_immediate == single.vector.action_immediate
    assert len(single.action_immediate) == len(single.action_names)
    assert env.action_space.dtype == env.observation_space.dtype == np.float32


@pytest.mark.parametrize(("id", "variant"), cases(RICHEST))
def test_the_same_seed_and_actions_give_the_same_episode_bitwise(id, variant, small):
    first, second = gym.make(id, **small, **variant), gym.make(id, **small, **variant)
    actions = random_actions(first)
    episode = play(first, actions, seed=5)
    assert_same(episode, play(second, actions, seed=5))
    for name, weight in weights_of(first).items():
        assert torch.equal(weight, weights_of(second)[name])
    other = play(second, actions, seed=6)
    assert repr([step[4] for step in other]) != repr([step[4] for step in episode])


@EVERY_ID
def test_the_infos_keys_are_those_of_the_manual_at_every_call_and_in_every_vector_env(id, small):
    small = small | {"evaluate_at_end": True}
    env = gym.make(id, **small)
    episode = play(env, random_actions(env), seed=0)
    keys = list(episode[0][4])
    for step in episode:
        assert list(step[4]) == keys and all(
            type(value) in (np.int64, np.float64) for value in step[4].values()
        )
    module = jel if id == cell.ID else sys.modules[MODULES[id]]  # cell's manual refers to jel's
    manual = {re.sub("<.*", "", key.strip("`")) for key in manual_table(module.__doc__, "key", 2)}
    plain, families = (
        {key for key in keys if "/" not in key},
        {key.split("/")[0] + "/" for key in keys if "/" in key},
    )
    assert plain | families == manual - ({"probe_loss"} - plain)
    assert (
        episode[-1][4]["held_out"] == env.unwrapped.evaluate() and episode[0][4]["held_out"] == 0.0
    )

    native = gym.make_vec(id, num_envs=2, **small)
    sync = gym.make_vec(id, num_envs=2, vectorization_mode="sync", **small)
    for left, right in zip(
        *(play(each, random_actions(each), seed=0) for each in (native, sync)), strict=True
    ):
        assert set(left[4]) == set(right[4]) and [key for key in left[4] if key[0] != "_"] == keys
        for key in keys:
            assert left[4][key].dtype == right[4][key].dtype
            assert left[4][key] == pytest.approx(right[4][key], rel=1e-4, abs=1e-4), key


@EVERY_ID
def test_an_episode_is_repeated_bitwise_on_the_same_object(id, small):
    env = gym.make(id, **small)
    actions = random_actions(env)
    episode = play(env, actions, seed=5)
    play(env, actions[::-1], seed=9)
    assert_same(play(env, actions, seed=5), episode)


@EVERY_ID
def test_two_environments_that_take_turns_do_not_notice_each_other(id, small):
    left, right = gym.make(id, **small), gym.make(id, **small)
    actions = random_actions(left)
    alone = [play(left, actions, seed=5), play(left, -actions, seed=6)]
    together = [[(*left.reset(seed=5),)], [(*right.reset(seed=6),)]]
    for action in actions:
        together[0].append(left.step(action))
        together[1].append(right.step(-action))
    for expected, found in zip(alone, together, strict=True):
        assert_same(found[1:], expected[1:])


@EVERY_ID
def test_an_environment_pickled_in_the_middle_goes_on_bitwise(id, small):
    env = gym.make(id, **small)
    actions = random_actions(env)
    env.reset(seed=3)
    env.step(actions[0])
    other = pickle.loads(pickle.dumps(env))
    assert_same(
        [env.step(action) for action in actions[1:]], [other.step(action) for action in actions[1:]]
    )
    for name, weight in weights_of(env).items():
        assert torch.equal(weight, weights_of(other)[name])


@EVERY_ID
def test_the_global_generators_are_never_touched(id, small):
    def states():
        numpy = np.random.get_state()  # noqa: NPY002  it is what must stay as it is
        return (
            random.getstate(),
            numpy[1].tobytes(),
            numpy[2:],
            torch.get_rng_state().numpy().tobytes(),
        )

    before = states()
    for env in (
        gym.make(id, **small, render_mode="rgb_array"),
        gym.make_vec(id, num_envs=2, **small),
    ):
        for seed in (None, 1):
            play(env, random_actions(env), seed)
        env.unwrapped.evaluate()
        env.render()
        branching.restore(env, branching.snapshot(env))
        branching.fork(env, 2)
    assert states() == before


@EVERY_ID
def test_the_global_generators_are_never_read(id, small):
    env = gym.make(id, **small)
    actions = random_actions(env)
    episode = play(env, actions, seed=5)
    state = torch.get_rng_state()
    torch.manual_seed(1234)
    try:
        assert_same(play(gym.make(id, **small), actions, seed=5), episode)
    finally:
        torch.set_rng_state(state)


@EVERY_ID
def test_a_row_of_make_vec_is_make_of_its_seed(id, small):
    """Bitwise on one thread of the machine that wrote it.

    test_pretraining.py says where the bound is from.
    """
    known = SPECS[id].observations
    small = small | {"observation": "full" if "full" in known else next(iter(known))}
    vector = gym.make_vec(id, num_envs=3, **small)
    actions = random_actions(vector)
    episode = play(vector, actions, seed=7)
    for row in range(3):
        env = gym.make(id, **small)
        alone = play(env, actions[:, row], seed=7 + row)
        for ours, theirs in zip(episode, alone, strict=True):
            assert ours[0][row] == pytest.approx(theirs[0], rel=1e-4, abs=1e-5)
            assert ours[4]["step"][row] == theirs[4]["step"]
        assert vector.unwrapped.evaluate()[row] == pytest.approx(env.unwrapped.evaluate(), rel=1e-4)


def in_a_new_process(code, *arguments):
    """What code prints, read as JSON; warnings are errors there, too."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_id_is_found_by_the_name_of_its_module(every_small):
    code = """
import gymnasium, json, sys, torch
torch.set_num_threads(1)
found = {}
for id, arguments in json.loads(sys.argv[1]).items():
    env = gymnasium.make(f"hpenv:{id}", **arguments)
    env.reset(seed=0)
    found[env.spec.id] = int(env.step(env.action_space.sample())[4]["step"])
print(json.dumps(found))
"""
    assert in_a_new_process(code, json.dumps(every_small)) == {
        id: arguments["interval"] for id, arguments in every_small.items()
    }


def test_every_decision_can_be_restored_in_another_process(every_small, tmp_path):
    """Bitwise: observations, rewards, infos and weights are those of the run that never stopped."""
    given = {id: arguments | {"observation": "full"} for id, arguments in every_small.items()}
    for id, arguments in given.items():
        env = gym.make_vec(id, num_envs=2, **arguments)
        env.reset(seed=4)
        for decision, action in enumerate(
            random_actions(env, 4)
        ):  # the last one begins the next episode
            snapshots.save(tmp_path / id / str(decision), branching.snapshot(env))
            env.step(action)
    code = """
import json, sys
import torch
torch.set_num_threads(1)
from tests import tiny_student
from tests.test_registered import continued
with tiny_student.few_pairs():
    found = {id: [continued(decision, id, f"{sys.argv[1]}/{id}", arguments)
                  for decision in range(4)]
             for id, arguments in json.loads(sys.argv[2]).items()}
print(json.dumps(found))
"""
    results = in_a_new_process(code, tmp_path, json.dumps(given))
    for id, arguments in given.items():
        never_stopped = continued(None, id, tmp_path / id, arguments)
        for decision, found in enumerate(results[id]):
            assert found["weights"] == never_stopped["weights"]
            for ours, theirs in zip(found["steps"], never_stopped["steps"][decision:], strict=True):
                assert ours == theirs


def continued(decision, id, folder, arguments):
    """Everything that follows a decision's snapshot, as text and exact numbers.

    With None for the decision it is the whole episode.
    """
    env = gym.make_vec(id, num_envs=2, **arguments)
    actions = random_actions(env, 4)
    env.reset(seed=4 if decision is None else 99)
    if decision is not None:
        branching.restore(env, snapshots.load(f"{folder}/{decision}"))
    taken = []
    for action in actions[decision or 0 :]:
        obs, rewards, terminated, _, infos = env.step(action)
        taken.append([obs.tolist(), rewards.tolist(), terminated.tolist(), repr(infos)])
    weights = {
        name: weight.double().flatten().tolist()[::97] for name, weight in weights_of(env).items()
    }
    return {"steps": taken, "weights": weights}


@EVERY_ID
def test_forks_of_a_run_go_on_like_it(id, small):
    env = gym.make(id, **small)
    actions = random_actions(env)
    env.reset(seed=2)
    env.step(actions[0])
    before = weights_of(env)
    fork = branching.fork(env, 3)
    copies = fork.step(np.repeat(actions[1:2], 3, axis=0))
    for name, weight in weights_of(env).items():
        assert torch.equal(weight, before[name])
    expected = env.step(actions[1])
    assert copies[0] == pytest.approx(np.tile(expected[0], (3, 1)), rel=1e-4, abs=1e-5)
    assert copies[1] == pytest.approx([expected[1]] * 3, rel=1e-4)
    for name, weight in weights_of(fork).items():
        assert torch.equal(weight[0], weight[1]) and torch.equal(weight[0], weight[2])
        torch.testing.assert_close(weight[0], weights_of(env)[name][0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("corner", [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)])
@pytest.mark.parametrize("optimizer", ["adamw_muon", "sgd", "adamw_schedule_free"])
def test_corners_held_for_a_whole_run_give_finite_numbers(corner, optimizer, tiny):
    arguments = tiny | {
        "batch_tokens": 16,
        "num_steps": 11,
        "interval": 4,
        "optimizer": optimizer,
        "base_lr": 0.02,
        "base_weight_decay": 0.1,
        "observation": "full",
    }
    env = gym.make_vec(
        JEL,
        num_envs=2,
        **arguments,
        reward={"progress": 1.0, "divergence": 1.0, "gradient_norm": 0.1, "smoothness": 0.1},
    )
    env.reset(seed=0)
    for _ in range(4):
        obs, rewards, _, _, infos = env.step(np.array([corner] * 2, dtype=np.float32))
        assert env.observation_space.contains(obs) and np.isfinite(rewards).all()
        for key in ("probe_loss", "train_loss", "gradient_norm"):
            assert np.isfinite(infos[key]).all()


def test_grouped_rows_are_equal_under_equal_actions_and_part_under_others(tiny):
    env = gym.make_vec(JEL, num_envs=3, **tiny, seed_mode="grouped")
    env.reset(seed=3)
    for weight in weights_of(env).values():
        assert torch.equal(weight[0], weight[1]) and torch.equal(weight[0], weight[2])
    _, _, _, _, infos = env.step(np.array([[0.3, 0.0], [0.3, 0.0], [-0.3, 0.0]], dtype=np.float32))
    assert infos["probe_loss"][0] == infos["probe_loss"][1] != infos["probe_loss"][2]


def test_rewards_add_up_to_the_decrease_of_the_probe_loss(tiny):
    env = gym.make(JEL, **tiny)
    episode = play(env, random_actions(env), seed=0)
    decrease = episode[0][4]["probe_loss"] - episode[-1][4]["probe_loss"]
    assert sum(step[1] for step in episode) == pytest.approx(decrease, abs=1e-12)
    assert episode[-1][2] and episode[-1][4]["step"] == 23


def test_the_corpus_is_named_by_its_digest(tiny):
    env = gym.make(JEL, **tiny)
    digest = env.unwrapped.plant.corpus.sha256
    assert (
        env.unwrapped.corpus_digest == gym.make_vec(JEL, num_envs=2, **tiny).corpus_digest == digest
    )
    assert len(digest) == 64


def words(module):
    """The text of a manual on one line."""
    return " ".join(module.__doc__.split())


def manual_table(manual, heading, num_columns=3):
    """Rows of the manual's table whose first column has this heading.

    A row is its other columns, with continued lines joined.
    """
    lines = [line.strip() for line in manual.splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} "))
    table = {}
    for line in itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :]):
        name, *entries = (entry.strip() for entry in line.strip("|").split("|"))
        assert len(entries) == num_columns - 1
        if name:
            table[last := name.strip("`")] = entries
        else:
            table[last][-1] += f" {entries[-1]}"
    return table


def listed(table, name):
    """Entries of a row, with those of the row that it says it has as well."""
    entries = []
    for entry in table[name][1].split(", "):
        inherited = re.fullmatch(r"those of `(\w+)`", entry)
        entries += listed(table, inherited[1]) if inherited else [entry]
    return entries


def test_the_manuals_actions_are_those_of_the_space(tiny):
    table = manual_table(jel.__doc__, "channels")
    assert set(table) == set(jel.SPEC.channel_sets)
    for actions, (count, columns) in table.items():
        env = gym.make(JEL, **tiny, channels=actions)
        assert ", ".join(env.unwrapped.action_names) == columns
        assert env.action_space == gym.spaces.Box(-1.0, 1.0, (int(count),), np.float32)


@pytest.mark.parametrize("actions", jel.SPEC.channel_sets)
def test_the_manuals_observations_are_those_of_the_space(tiny, actions):
    table = manual_table(jel.__doc__, "observation")
    assert set(table) == set(jel.SPEC.observations)
    for observation, (count, _) in table.items():
        env = gym.make(JEL, **tiny, observation=observation, channels=actions).unwrapped
        names = []
        for column in listed(table, observation):
            if column == "one position/<column> each":
                names += [f"position/{name}" for name in env.action_names]
            else:
                names.append(column)
        assert env.observation_names == tuple(names)
        if actions == "shared":
            assert env.observation_space.shape == (int(count),)


def test_the_manual_says_where_multipliers_end(tiny):
    env = gym.make(JEL, **tiny)
    assert "exp(ln 100 u) in [0.01, 100]" in words(jel)
    env.reset(seed=0)
    for position, value in ((-1.0, 0.01), (0.5, 10.0), (1.0, 100.0)):
        info = env.step(np.full(2, position, dtype=np.float32))[4]
        assert [info["panel/lr"], info["panel/weight_decay"]] == pytest.approx([value, value])


def test_defaults_are_the_papers():
    settings = jel.SPEC.settings()
    episode, config = settings.episode, settings.config
    assert (episode.num_steps, episode.interval) == (561, 50)
    assert (config.base_lr, config.base_weight_decay) == (1e-3, 1e-2)
    assert config.num_probe_batches == 4 and config.lr_schedule == WarmupFlatWarmdown(561)
    assert episode.reward == {"progress": 1.0, "divergence": 1.0}


@pytest.mark.parametrize(
    ("arguments", "rates"),
    [
        ({"schedule": "none"}, [1.0, 1.0]),
        ({}, [1.0, 1 / 9]),  # the last of nine steps of warmdown: 40 % of 23
        ({"schedule": Cosine(23)}, [1.0, 0.5 * (1 + math.cos(math.pi * 22 / 23))]),
        (
            {"schedule": dict.fromkeys(("embedding", "unembedding", "matrix"), Constant(4))},
            [0.25, 1.0],
        ),
    ],
)
def test_base_schedules_reach_the_plant(arguments, rates, tiny):
    plant = gym.make(JEL, **tiny, **arguments).unwrapped.plant
    plant._begin_window(23)
    lr = plant._rates["matrix"][0]  # (23, 1, tensors of the group)
    assert lr[[0, 22], 0, 0].tolist() == pytest.approx([1e-3 * rate for rate in rates])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "giant"}, r"unknown preset 'giant'; expected one of \['cell11', "),
        ({"data": "wikipedia"}, "unknown data 'wikipedia'; expected one of 'stdlib', 'synthetic"),
        ({"tokenizer": "words"}, "tokenizer and vocab_size must fit data 'synthetic'; got 'words'"),
        ({"optimizer": "adam"}, r"unknown optimizer 'adam'; expected one of \['adamw', "),
        (
            {"schedule": "cosin"},
            r"unknown schedule 'cosin'; expected one of \['constant', 'cosine', ",
        ),
        (
            {"schedule": {"matrices": Constant()}},
            r"lr_schedule must have .*; got the groups \['matrices'\]",
        ),
        ({"observation": "all"}, r"unknown observation 'all'; expected one of \['full', "),
        ({"observation": ["progres"]}, r"unknown feature 'progres'; expected one of \['gradient"),
        (
            {"channels": "each"},
            r"unknown channels 'each'; expected one of \['per_optimizer', 'shared'\]",
        ),
        ({"reward": {"entropy": 1.0}}, r"unknown reward term.* 'entropy'.*; expected"),
        (
            {"reward": {"smoothness": -1.0}},
            "weight of reward term 'smoothness' must be a number, finite and not negative; got -1",
        ),
        (
            {"reward": {"smoothness": math.nan}},
            "weight of reward term 'smoothness' must be a number, .*; got nan",
        ),
        (
            {"seed_mode": "same"},
            r"unknown seed_mode 'same'; expected one of \['independent', 'grouped'\]",
        ),
        ({"base_lr": -1e-3}, "base_lr must be finite and not negative; got -0.001"),
        ({"base_lr": math.nan}, "base_lr must be finite and not negative; got nan"),
        (
            {"base_lr": {"matrix": 1e-3}},
            r"base_lr must have .* the groups \['emb.*; got the groups \['matrix'\]",
        ),
        (
            {"base_weight_decay": -1.0},
            "base_weight_decay must be finite and not negative; got -1.0",
        ),
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1; got 0"),
        ({"interval": 24}, "interval must be .*, from 1 to num_steps=23; got 24"),
        ({"interval": 0}, "interval must be .*, from 1 to num_steps=23; got 0"),
        ({"batch_tokens": 100}, "batch_tokens must be a multiple of sequence_length=16; got 100"),
        ({"eval_tokens": 0}, "eval_tokens must be a whole number of at least 1; got 0"),
        ({"compile": "no"}, "compile must be True or False; got 'no'"),
        ({"dtype": "half"}, r"unknown dtype 'half'; expected one of \['bfloat16', 'float32'\]"),
        (
            {"batch_token": 64},
            r"TrainLoop-JEL-v0 got an unexpected keyword argument 'batch_token'; expected some of "
            r"\['base_lr'",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message, tiny):
    with pytest.raises(ValueError, match=message):
        gym.make(JEL, **tiny | arguments)
    with pytest.raises(ValueError, match=message):
        gym.make_vec(JEL, num_envs=2, **tiny | arguments)


def test_bad_arguments_of_the_population_are_refused_by_name(tiny):
    with pytest.raises(
        ValueError, match=r"unknown autoreset_mode 'NEVER'; expected one of \['DISABLED', "
    ):
        gym.make_vec(JEL, num_envs=2, **tiny, autoreset_mode="NEVER")
    with pytest.raises(ValueError, match="num_rows must be a whole number of at least 1; got 0"):
        gym.make_vec(JEL, num_envs=0, **tiny)
    with pytest.raises(
        ValueError, match=r"num_rows must be a whole number of at least 1; got 1\.5"
    ):
        gym.make_vec(JEL, num_envs=1.5, **tiny)


@pytest.mark.parametrize(
    "action",
    [
        np.zeros(3, dtype=np.float32),
        np.zeros(2, dtype=np.int64),
        np.array([math.nan, 0.0]),
        np.array([0.0, math.inf]),
    ],
    ids=["shape", "dtype", "nan", "infinity"],
)
def test_bad_actions_are_refused_with_what_is_accepted(action, tiny):
    env = gym.make(JEL, **tiny).unwrapped
    env.reset(seed=0)
    message = (
        r"(actions? must be (floating point |)of shape|"
        r"actions must be finite numbers).*got"
    )
    with pytest.raises(ValueError, match=message):
        env.step(action)
    assert env.plant.steps.tolist() == [0]


def test_the_manuals_surfaces_are_those_of_the_space(tiny):
    table = manual_table(cell.__doc__, "channels")
    assert list(table) == list(cell.SPEC.channel_sets)
    default = gym.make(CELL, **tiny).action_space.shape
    assert default == (
        98,
    ) and "by default, `foundational` with 8 registers, of shape (98,)" in words(cell)
    for surface, (count, _) in table.items():
        assert [tuple(pair.split("/")) for pair in listed(table, surface)] == list(
            cell.SPEC.channel_sets[surface]
        )
        env = gym.make(CELL, **tiny, channels=surface)
        assert env.action_space == gym.spaces.Box(-1.0, 1.0, (int(count) + 8,), np.float32)
        assert env.unwrapped.action_names[-8:] == tuple(f"register/{i}" for i in range(8))


def test_the_manuals_gauges_are_those_of_the_space(tiny):
    table = manual_table(cell.__doc__, "observation")
    assert list(table) == list(cell.SPEC.observations)
    for observation, (count, _) in table.items():
        env = gym.make(CELL, **tiny, observation=observation).unwrapped
        columns = {"<layer>": range(11), "<register>": range(8), "<cell>": env.plant.panel.names}
        names = []
        for entry in listed(table, observation):
            gauge, _, index = entry.partition("/")
            names += [f"{gauge}/{own}" for own in columns[index]] if index else [gauge]
        assert env.observation_names == tuple(names) and len(names) == int(count)


def test_every_channel_has_a_usual_scope_and_no_unsafe_one_is_in_a_surface_that_is_not_named_after_it():  # noqa: E501
    channels = channels_of("pretraining")
    for name, channel in channels.items():
        ((_, scope),) = cell.SPEC.settings(channels=[name]).channels
        assert scope in channel.scopes
        assert scope == dict(cell.SPEC.channel_sets["full"]).get(
            name, "run" if name == "grad_noise" else channel.scopes[-1]
        )
    unsafe = {name for name, channel in channels.items() if channel.kind == "unsafe"}
    alone = {f"foundational_{name}": {name} for name in unsafe}
    assert {name for name, _ in cell.SPEC.channel_sets["full"]} == set(channels) - unsafe
    for surface, pairs in cell.SPEC.channel_sets.items():
        assert {name for name, _ in pairs} & unsafe <= alone.get(surface, set())


@pytest.mark.parametrize(
    ("channels", "names"),
    [
        (["grad_clip", "eps"], ["grad_clip", "eps/layer.0", "eps/layer.1"]),
        ([("lr", "run"), "grad_noise"], ["lr", "grad_noise"]),
        ((["lr", "layer"], ["dropout", "run"]), ["lr/layer.0", "lr/layer.1", "dropout"]),
        ({"lr": "layer", "dropout": "run"}, ["lr/layer.0", "lr/layer.1", "dropout"]),
        ([], []),
    ],
)
def test_channels_can_be_chosen_one_by_one(channels, names, tiny):
    env = gym.make(CELL, **tiny, preset="nano", channels=channels, num_registers=1).unwrapped
    assert env.action_names == (*names, "register/0")
    env.reset(seed=0)
    assert np.isfinite(env.step(np.full(len(names) + 1, 0.5))[1])


def test_a_channel_set_is_never_called_as_a_channel_is():
    for module in (jel, cell, grpo_projection):
        assert not set(module.SPEC.channel_sets) & set(CHANNELS)


def test_a_channel_that_stands_in_no_surface_stands_at_its_finest_scope(monkeypatch):
    gain = dataclasses.replace(
        CHANNELS["attention_gain"], name="value_gain", scopes=("run", "group", "layer")
    )
    monkeypatch.setitem(CHANNELS, "value_gain", gain)
    given = ["lr", "value_gain", "grad_noise", "momentum_blend"]
    pairs = cell.SPEC.settings(channels=given).channels
    assert pairs == (
        ("lr", "tensor"),
        ("value_gain", "layer"),
        ("grad_noise", "run"),
        ("momentum_blend", "layer"),
    )


@pytest.mark.parametrize("id", [JEL, CELL])
def test_a_device_that_is_not_there_is_refused_by_name(id, small):
    absent = "cuda:99" if torch.cuda.is_available() else "cuda"
    for device in (absent, "meta"):
        with pytest.raises(
            ValueError, match=f"device '{device}' is not available .*; try device='cpu'"
        ):
            gym.make(id, **small, device=device)


def test_columns_that_the_forward_pass_reads_are_immediate(tiny):
    env = gym.make(
        CELL, **tiny, preset="nano", channels=["lr", "dropout", "grad_scale", "embedding_gain"]
    ).unwrapped
    for name, immediate, kind in zip(
        env.action_names, env.action_immediate, env.action_kinds, strict=True
    ):
        assert immediate == name.startswith(("dropout", "embedding_gain"))
        assert (kind == "register") == name.startswith("register/")


@pytest.mark.parametrize("surface", ["full", "foundational_momentum_blend"])
@pytest.mark.parametrize("corner", [1.0, -1.0, "either"])
def test_cells_at_their_corners_give_finite_observations(surface, corner, tiny):
    """On the model of the id's own preset, with the noise channel as well."""
    arguments = tiny | {
        "interval": 1,
        "num_steps": 3,
        "channels": [*cell.SPEC.channel_sets[surface], "grad_noise"],
    }
    reward = dict.fromkeys(measured_terms(MEASUREMENTS), 1.0)
    env = gym.make_vec(CELL, num_envs=2, **arguments, observation="full_position", reward=reward)
    env.reset(seed=0)
    random = np.random.default_rng(1)
    for _ in range(4):
        action = (
            random.choice([-1.0, 1.0], env.action_space.shape)
            if corner == "either"
            else np.full(env.action_space.shape, corner)
        )
        obs, rewards, _, _, infos = env.step(action.astype(np.float32))
        assert env.observation_space.contains(obs) and np.isfinite(rewards).all()
        assert {f"reward_terms/{name}" for name in reward} < set(infos)
        for key, values in infos.items():
            assert np.isfinite(values).all(), key


def test_random_cells_of_the_ids_own_preset_give_a_moving_observation(tiny):
    """No gauge stands still, of any layer: what a controller is shown is measured."""
    env = gym.make(CELL, **tiny | {"interval": 1}, reward={"loss_change": 1.0})
    seen = np.array([step[0] for step in play(env, random_actions(env, 6), seed=0)[1:]])
    still = [
        name
        for name, column in zip(env.unwrapped.observation_names, seen.T, strict=True)
        if np.ptp(column) == 0
    ]
    assert not [name for name in still if not name.startswith("layer_saturation")], still
    assert (
        seen[
            :, [name.startswith("layer_saturation") for name in env.unwrapped.observation_names]
        ].max()
        <= 1.0
    )


def test_the_reward_of_a_decision_is_the_fall_of_the_training_loss_since_the_last(tiny):
    env = gym.make(CELL, **tiny | {"interval": 1, "preset": "nano"})
    episode = play(env, random_actions(env, 5), seed=0)
    losses = [step[4]["train_loss"] for step in episode[1:]]
    rewards = [step[1] for step in episode[1:]]
    assert rewards == pytest.approx([0.0, *(a - b for a, b in itertools.pairwise(losses))])
    assert not any("probe_loss" in step[4] for step in episode)


def test_an_update_reaches_the_reward_one_decision_later_and_a_forward_dial_at_once(tiny):
    arguments = tiny | {"interval": 1, "preset": "nano", "base_lr": 0.02}
    env = gym.make(CELL, **arguments, channels=["lr", "attention_gain"]).unwrapped
    env.reset(seed=0)
    for _ in range(5):  # the branches of an untrained model put out nothing that could gain
        env.step(np.zeros(len(env.action_names)))
    actions = np.zeros((3, len(env.action_names)))
    actions[1, [name.startswith("lr/") for name in env.action_names]] = 0.5
    actions[2, [name.startswith("attention_gain/") for name in env.action_names]] = 0.5
    one, two = branching.counterfactual(env, actions, 1), branching.counterfactual(env, actions, 2)
    assert one[0] == pytest.approx(one[1], abs=1e-6) and abs(one[2] - one[0]) > 1e-5
    assert abs(two[1] - two[0]) > 1e-5


def test_a_counterfactual_leaves_a_real_run_bitwise_as_it_is(tiny):
    arguments = tiny | {"interval": 1, "preset": "nano", "channels": "full"}
    env, twin = gym.make(CELL, **arguments).unwrapped, gym.make(CELL, **arguments).unwrapped
    actions = random_actions(env, 4)
    for each in (env, twin):
        each.reset(seed=3)
        each.step(actions[0])
    assert len(set(branching.counterfactual(env, actions, 3))) == 4
    for action in actions[1:]:
        assert_same([env.step(action)], [twin.step(action)])
    for name, weight in weights_of(env).items():
        assert torch.equal(weight, weights_of(twin)[name])


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        ({"num_step": 20}, "num_steps"),
        ({"channels": "foundation"}, "foundational"),
        ({"channels": ["weigth_decay"]}, "weight_decay"),
        ({"channels": [("dropuot", "layer")]}, "dropout"),
        ({"observation": ["progess"]}, "progress"),
        ({"reward": {"loss_chnage": 1.0}}, "loss_change"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_that_is_known(arguments, nearest):
    with pytest.raises(ValueError, match=rf"; did you mean '{nearest}'\?"):
        gym.make(cell.ID, **arguments)


def test_defaults_of_cell_are_those_of_its_manual():
    settings = cell.SPEC.settings()
    episode, config = settings.episode, settings.config
    assert (config.preset, episode.num_steps, episode.interval) == ("cell11", 3000, 1)
    assert episode.reward == {"loss_change": 1.0, "divergence": 1.0}
    assert episode.channels == "foundational"
    assert config.lr_schedule == Constant() and config.optimizer == "adamw"
    assert "r <- 0.9 r + 0.1 u" in words(cell)
    assert (episode.num_registers, episode.register_leak) == (8, 0.9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"channels": "all"},
            r"unknown channels 'all'; expected one of \['foundational', 'foundational_grad_gate', ",
        ),
        (
            {"channels": "lr"},
            r"unknown channels 'lr'; expected one of \['found.*'\], or a list of channel names",
        ),
        (
            {"channels": None},
            r"unknown channels None; expected one of \['found.*'\], or a list of channel names",
        ),
        (
            {"channels": {"lr", "eps"}},
            r"unknown channels {.*}; expected one of \['found.*'\], or a list of channel",
        ),
        (
            {"channels": [3]},
            r"channel must be a name or a .* pair, with a name of \['attention_gain', .*; got 3",
        ),
        ({"channels": [("lr", 3)]}, r"channel must be a name or .*; got \('lr', 3\)"),
        ({"channels": {"lr": ["run"]}}, r"channel must be a name or .*; got \('lr', \['run'\]\)"),
        (
            {"channels": {"rate": "run"}},
            r"unknown channel 'rate'; expected one of \['attention_gain', ",
        ),
        (
            {"channels": ("lr", "layer")},
            r"channel must be a name, not a scope; got 'layer'; .* as \[\('lr', 'layer'\)\]",
        ),
        (
            {"channels": ["run"]},
            r"got 'run'; give a scope in a pair, as \[\('lr', 'run'\)\]",
        ),
        ({"channels": ["rate"]}, r"unknown channel 'rate'; expected one of \['attention_gain', "),
        (
            {"channels": [("lr", "head")]},
            r"channel 'lr' has no scope 'head'; expected one of \['run', ",
        ),
        (
            {"channels": [("lr", "layer", "run")]},
            r"channel must be a name or .*; got \(\'lr\', \'layer\', \'run\'\)",
        ),
        ({"channels": ["eps"], "optimizer": "sgd"}, "have no use for the channel 'eps'"),
        (
            {"observation": "all"},
            r"unknown observation 'all'; expected one of \['full', 'full_position', ",
        ),
        (
            {"observation": "train_loss"},
            r"unknown observation 'train_loss'; .*'progress'\], or a list of feature names",
        ),
        (
            {"observation": None},
            r"unknown observation None; expected one of .*, or a list of feature names",
        ),
        (
            {"observation": [["progress"]]},
            r"unknown feature \['progress'\]; expected one of \['gradient_norm', ",
        ),
        ({"observation": ["progress", "loss", "rate"]}, "unknown feature 'loss'; expected one of"),
        (
            {"observation": ["progress", "train_loss", "progress"]},
            r"observation must name each feature once; got \[.*\]",
        ),
        (
            {"reward": "progress"},
            r"reward must be a mapping .* with some of \['budget', .*; got 'progress'",
        ),
        (
            {"reward": None},
            "reward must be a mapping of terms to weights, as {'loss_change': 1.0}.*; got None",
        ),
        ({"reward": {"loss": 1.0}}, r"unknown reward term 'loss'; expected some of \['budget', "),
        (
            {"schedule": "cosin"},
            r"unknown schedule 'cosin'; expected one of \['constant', 'cosine', ",
        ),
        (
            {"schedule": lambda steps: 1.0},
            r"schedule must map an array of steps to an array of as many multipliers; got "
            r"<function",
        ),
        ({"data": None}, r"data must be a name or a path .*; got None"),
        ({"interval": 24}, "interval must be .*, from 1 to num_steps=23; got 24"),
        ({"num_registers": -1}, "num_registers must be a whole number of at least 0; got -1"),
        ({"register_leak": 1.5}, "register_leak must be at least 0 and below 1; got 1.5"),
        (
            {"channel": "full"},
            r"TrainLoop-Cell-v0 got an unexpected keyword argument 'channel'; expected some of "
            r"\['base_lr'",
        ),
    ],
)
def test_bad_arguments_of_cell_are_refused_by_name(arguments, message, tiny):
    with pytest.raises(ValueError, match=message):
        gym.make(CELL, **tiny | {"preset": "nano"} | arguments)
    with pytest.raises(ValueError, match=message):
        gym.make_vec(CELL, num_envs=2, **tiny | {"preset": "nano"} | arguments)


@EVERY_ID
def test_restored_into_a_new_environment_it_can_be_stepped_without_a_reset(id, small):
    env = gym.make(id, **small)
    env.reset(seed=3)
    observation = env.step(random_actions(env)[0])[0]
    saved = branching.snapshot(env)
    other = gym.make(id, **small)
    assert np.array_equal(branching.restore(other, saved), observation)
    assert np.array_equal(
        other.step(random_actions(env)[1])[0], env.step(random_actions(env)[1])[0]
    )


def test_the_manuals_surfaces_of_the_projection_are_those_of_the_space(tiny_projection):
    table = manual_table(grpo_projection.__doc__, "channels")
    assert list(table) == list(grpo_projection.SPEC.channel_sets)
    for surface, (count, _) in table.items():
        assert [tuple(pair.split("/")) for pair in listed(table, surface)] == list(
            grpo_projection.SPEC.channel_sets[surface]
        )
        env = gym.make(PROJECTION, **tiny_projection, channels=surface)
        assert env.action_space == gym.spaces.Box(-1.0, 1.0, (int(count),), np.float32)
    assert gym.make(PROJECTION, **tiny_projection).action_space.shape == (1,)
    assert set(dict(grpo_projection.SPEC.channel_sets["full"])) == set(channels_of("posttraining"))


def test_the_manuals_gauges_of_the_projection_are_those_of_the_space(tiny_projection):
    table = manual_table(grpo_projection.__doc__, "observation")
    assert list(table) == list(grpo_projection.SPEC.observations)
    for observation, (count, _) in table.items():
        env = gym.make(PROJECTION, **tiny_projection, observation=observation).unwrapped
        assert env.observation_names == tuple(listed(table, observation))
        assert len(env.observation_names) == int(count)


def test_defaults_of_the_projection_are_those_of_its_manual():
    settings = grpo_projection.SPEC.settings()
    episode, config = settings.episode, settings.config
    assert (config.student, episode.num_steps, episode.interval) == ("nano", 200, 1)
    assert episode.channels == "projection"
    assert episode.reward == {"probe_pass": 1.0, "flagged_hacks": 1.0, "divergence": 1.0}
    assert dataclasses.replace(config, lr_schedule=Constant()) == GRPOConfig()
    assert config.lr_schedule == Cosine(200, 10)
    assert grpo_projection.SPEC.settings(num_steps=6).config.lr_schedule == Cosine(6, 3)


@executes
def test_what_is_true_of_a_run_is_in_its_info_alone(tiny_projection):
    """Gauges are the grader's payments and measures.

    The rates by the true verdict have a key of their own.
    """
    env = gym.make(PROJECTION, **tiny_projection, channels="full")
    episode = play(env, random_actions(env), seed=1)
    for prefix, names in (
        ("gauges", (*GAUGE_NAMES, "probe_pass")),
        ("privileged", PRIVILEGED_NAMES),
    ):
        keys = [f"{prefix}/{name}" for name in names]
        assert [key for key in episode[0][4] if key.startswith(prefix)] == keys
        assert [episode[0][4][key] for key in keys] == [0.0] * len(keys)
    for _, reward, _, _, info in episode[1:]:
        expected = info["gauges/probe_pass"] - info["gauges/flagged"]
        assert (
            reward
            == pytest.approx(expected)
            == info["reward_terms/probe_pass"] + info["reward_terms/flagged_hacks"]
        )
    assert not set(env.unwrapped.observation_names) & set(PRIVILEGED_NAMES)
    assert env.unwrapped.metadata["stacked"] is True


@executes
def test_a_projection_run_is_scored_by_passes_less_hacks_and_reported_apart(
    tiny_projection, capsys
):
    rows = evaluate.evaluate_controller(None, PROJECTION, tiny_projection, [0, 1])
    for row in rows:
        assert (
            row["score"] == row["pass"] - row["hack"]
            and "bpb" not in row
            and len(row["train_curve"]) == 3
        )
    assignments = [f"{key}={json.dumps(value)}" for key, value in tiny_projection.items()]
    evaluate.main(["--env", PROJECTION, "--seeds", "1", "--env-kwargs", *assignments])
    printed = capsys.readouterr().out
    assert (
        "held-out passes less hacks" in printed
        and "held-out hack" in printed
        and "bits per byte" not in printed
    )


@executes
def test_a_picture_of_a_projection_run_shows_strengths_that_are_zero(tiny_projection):
    neutral, full = np.array([-1.0], dtype=np.float32), np.array([1.0], dtype=np.float32)
    env = gym.make(PROJECTION, **tiny_projection, render_mode="ansi")
    env.reset(seed=0)
    env.step(full)
    assert re.fullmatch(r"step 2/5  probe [01]\.\d{4}  projection_strength 1", env.render())
    pictures = []
    for action in (neutral, full):
        env = gym.make(PROJECTION, **tiny_projection, render_mode="rgb_array")
        env.reset(seed=0)
        env.step(action)
        pictures.append(env.render()[CELLS[0] :, :RIGHT].astype(int))
    blank = gym.make(PROJECTION, **tiny_projection, render_mode="rgb_array")
    blank.reset(seed=0)
    empty = blank.render()[CELLS[0] :, :RIGHT].astype(int)
    colored = [
        (abs(picture - picture.mean(-1, keepdims=True)).max(-1) > 30).sum()
        for picture in (*pictures, empty)
    ]
    assert (
        colored[0] > 50 + colored[2]
        and colored[1] > 50 + colored[2]
        and (pictures[0] != pictures[1]).any()
    )


@executes
def test_every_corner_of_the_projection_is_finite_or_an_outcome(tiny_projection):
    env = gym.make_vec(
        PROJECTION, num_envs=3, **tiny_projection | {"channels": "full", "base_lr": 1.0}
    )
    env.reset(seed=0)
    corners = np.array([[1.0] * 6, [-1.0] * 6, [1.0, 1.0, -1.0, -1.0, 1.0, 1.0]], dtype=np.float32)
    for _ in range(4):
        obs, rewards, _, _, infos = env.step(corners)
        assert env.observation_space.contains(obs) and np.isfinite(rewards).all()
        assert all(np.isfinite(values).all() for values in infos.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"channels": "all"},
            r"unknown channels 'all'; expected one of \['full', 'modules', 'projection'\]",
        ),
        (
            {"channels": ["dropout"]},
            r"channel 'dropout' applies to pretraining alone; expected one of \['direction_ref",
        ),
        (
            {"channels": ["lr", "kl"]},
            r"unknown channel 'kl'; expected one of \['direction_refresh', ",
        ),
        (
            {"observation": "all"},
            r"unknown observation 'all'; expected one of \['full', 'progress', 'reward'\]",
        ),
        (
            {"observation": ["progress", "loss"]},
            r"unknown feature 'loss'; expected one of \['coefficient_norm', ",
        ),
        (
            {"observation": ["progress", "momentum_norm"]},
            "unknown feature 'momentum_norm'; expected one of",
        ),
        ({"reward": {"hack": 1.0}}, r"unknown reward term 'hack'; expected some of \['budget', "),
        (
            {"reward": {"same_batch_change": 1.0}},
            "reward term 'same_batch_change' reads what this plant does not meas",
        ),
        ({"reward": {}}, "reward must be a mapping of terms to weights, .*; got {}"),
        ({"route": "no"}, "route must be True or False; got 'no'"),
        (
            {"schedule": "cosin"},
            r"unknown schedule 'cosin'; expected one of \['constant', 'cosine', ",
        ),
        ({"interval": 6}, "interval must be .*, from 1 to num_steps=5; got 6"),
        ({"num_samples": 1}, "num_samples must be at least 2, .* got 1"),
        ({"rule": "sideways"}, r"unknown rule 'sideways'; expected one of \['drift', "),
        ({"student": None}, "student must be the name of a shipped student.*; got None"),
        ({"cache": "/nowhere/verdicts"}, "cannot keep verdicts: there is no folder '/nowhere'"),
        (
            {"student": "/nowhere/giant"},
            r"no student in /nowhere/giant; expected one of \['nano'\], a folder with",
        ),
        (
            {"data": "stdlib"},
            r"TrainLoop-GRPOProjection-v0 got an unexpected keyword argument 'data'; expected some "
            r"of \['advantage",
        ),
    ],
)
def test_bad_arguments_of_the_projection_are_refused_by_name(arguments, message, tiny_projection):
    with pytest.raises(ValueError, match=message):
        gym.make(PROJECTION, **tiny_projection | arguments)
    with pytest.raises(ValueError, match=message):
        gym.make_vec(PROJECTION, num_envs=2, **tiny_projection | arguments)


def test_a_student_that_was_loaded_in_another_way_is_taken_as_it_is(tiny_projection):
    own = tiny_student.student()
    env = gym.make(PROJECTION, **tiny_projection | {"student": own}).unwrapped
    assert env.plant.student is own


def test_gauges_of_another_plant_are_refused_by_name(tiny, tiny_projection):
    with pytest.raises(
        ValueError, match=r"unknown feature 'probe_pass'; expected one of \['gradient_norm', "
    ):
        gym.make(CELL, **tiny, preset="nano", observation=["progress", "probe_pass"])
    with pytest.raises(
        ValueError, match="reward term 'flagged_hacks' reads what this plant does not measure"
    ):
        gym.make(CELL, **tiny, preset="nano", reward={"flagged_hacks": 1.0})
    with pytest.raises(ValueError, match="unknown feature 'momentum_norm'"):
        gym.make(PROJECTION, **tiny_projection, observation=["progress", "momentum_norm"])
