"""A new process continues from every agent's folder bitwise.

Other fields are refused.

All agents share one process, because its start costs more than its work.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from agents.jel import JELAgent
from agents.ppo import PPOAgent
from hpenv.policies.store import load_state, save_state
from tests.agents import small_jel, small_sidecars, test_ppo


class Case(NamedTuple):
    """Functions that make an agent from a seed, and run its update of a number."""

    make: Callable[[int], Any]
    update: Callable[[Any, int], object]


CASES = {
    "jel": Case(
        lambda seed: JELAgent(1, 2, small_jel.SMALL, seed=seed),
        lambda agent, number: agent.update(small_jel.fixed_rollout(agent)),
    ),
    "ppo": Case(lambda seed: PPOAgent(1, 2, test_ppo.SMALL, seed=seed), test_ppo.learn),
    "sidecar": Case(
        lambda seed: small_sidecars.make(seed=seed),
        lambda agent, number: small_sidecars.train(agent, 5, start=5 * number),
    ),
}


def continue_all(before: str, after: str) -> None:
    """Loads every agent, updates it once more and saves it."""
    for name, case in CASES.items():
        agent = case.make(9)
        agent.load(Path(before) / name)
        case.update(agent, 1)
        agent.save(Path(after) / name)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of the agents after one update, and after another one in a new process."""
    before, after = (tmp_path_factory.mktemp(name) for name in ("before", "after"))
    for name, case in CASES.items():
        agent = case.make(1)
        case.update(agent, 0)
        agent.save(before / name)
    code = f"import sys; from {__name__} import continue_all; continue_all(*sys.argv[1:])"
    subprocess.run([sys.executable, "-c", code, before, after], check=True)
    return before, after


def contents(folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    tensors, metadata = load_state(folder, "agent")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, metadata


@pytest.mark.parametrize("name", CASES)
def test_loaded_in_a_fresh_process_it_continues_bitwise(name, folders, tmp_path):
    make, update = CASES[name]
    whole, again = make(1), make(2)
    update(whole, 0)
    update(whole, 1)
    whole.save(tmp_path / "whole")
    assert (
        contents(tmp_path / "whole") == contents(folders[1] / name) != contents(folders[0] / name)
    )
    again.load(folders[1] / name)
    update(whole, 2)
    update(again, 2)
    whole.save(tmp_path / "whole")
    again.save(tmp_path / "again")
    assert contents(tmp_path / "whole") == contents(tmp_path / "again")


def one_of_a_kind(tensors):
    """Returns names of tensors, one for each prefix before the first dot."""
    return {name.partition(".")[0]: name for name in tensors}.values()


@pytest.mark.parametrize("name", CASES)
def test_a_tensor_or_number_that_is_missing_or_too_many_is_refused_by_name(name, folders, tmp_path):
    tensors, metadata = load_state(folders[0] / name, "agent")
    given = {key: value for key, value in metadata.items() if key != "kind"}
    agent = CASES[name].make(1)
    agent.save(tmp_path / "before")
    for key in one_of_a_kind(tensors):
        save_state(tmp_path / "bad", "agent", {k: v for k, v in tensors.items() if k != key}, given)
        with pytest.raises(ValueError, match=rf"bad must hold the tensors? .*{key}"):
            agent.load(tmp_path / "bad")
    save_state(tmp_path / "bad", "agent", tensors | {"extra": torch.zeros(1)}, given)
    with pytest.raises(ValueError, match=r"bad .*extra"):
        agent.load(tmp_path / "bad")
    for key in given:
        save_state(tmp_path / "bad", "agent", tensors, {k: v for k, v in given.items() if k != key})
        with pytest.raises(ValueError, match=key):
            agent.load(tmp_path / "bad")
    agent.save(tmp_path / "after")
    assert contents(tmp_path / "after") == contents(
        tmp_path / "before"
    )  # what was refused has changed nothing


@pytest.mark.parametrize("name", ["jel", "ppo"])
def test_a_tensor_of_another_shape_or_type_is_refused_by_name(name, folders, tmp_path):
    tensors, metadata = load_state(folders[0] / name, "agent")
    given = {key: value for key, value in metadata.items() if key != "kind"}
    agent = CASES[name].make(1)
    for key in one_of_a_kind(tensors):
        tensor = tensors[key]
        for changed in (
            torch.zeros(*tensor.shape, 2, dtype=tensor.dtype),
            tensor.to(torch.float16),
        ):
            save_state(tmp_path / "bad", "agent", tensors | {key: changed}, given)
            with pytest.raises(ValueError, match=rf"bad: tensor '{key}' must be"):
                agent.load(tmp_path / "bad")


def test_ppo_counts_the_decisions_and_epochs_that_it_has_learned_from(folders):
    agent = CASES["ppo"].make(1)
    epochs = test_ppo.learn(agent, 0)["train/n_updates"]
    decisions = agent.model.num_timesteps
    assert epochs >= 1 and decisions >= 1
    assert test_ppo.learn(agent, 1)["train/n_updates"] == 2 * epochs
    agent.load(folders[0] / "ppo")
    assert agent.model.num_timesteps == decisions
    assert test_ppo.learn(agent, 1)["train/n_updates"] == 2 * epochs
