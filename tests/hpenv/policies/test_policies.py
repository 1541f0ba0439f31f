import hashlib
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from hpenv.plant import snapshots
from hpenv.plant.snapshots import MANIFEST, STATE, TENSORS
from hpenv.policies import (
    POLICIES,
    CellMLP,
    ControllerSpec,
    GaussianMLP,
    Neutral,
    ScheduleTable,
    load_policy,
    save_policy,
)
from hpenv.policies.controller import Columns
from hpenv.policies.policy import Policy
from hpenv.policies.sb3_mlp import SB3MLP
from hpenv.policies.store import load_state, save_state

SPEC = {"spec": ControllerSpec().values()}


def make(name: str) -> Policy:
    if name == "gaussian_mlp":
        return GaussianMLP(1, 2, hidden_sizes=(8, 4), seed=3)
    if name == "cells":
        return CellMLP(9, 1, 2, hidden_size=4, initial_mean=(0.3, -0.4, 0.1), common=(0, 0))
    if name == "neutral":
        return Neutral(2)
    if name == "schedule_table":
        return ScheduleTable(np.linspace(-1, 1, 24).reshape(12, 2))
    assert name == "sb3_mlp"
    policy = SB3MLP(1, 2, hidden_sizes=(8, 4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.uniform_(-2.0, 2.0, generator=generator)
    return policy


OBSERVATIONS = np.linspace(0.0, 1.0, 9, dtype=np.float32)[:, None]


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_acts_in_the_box_and_repeats_itself(name):
    policy = make(name)
    positions = policy.act(OBSERVATIONS)
    assert positions.shape == (9, policy.action_size) == (9, 2)
    assert positions.dtype == np.float32
    assert np.abs(positions).max() <= 1.0
    assert np.array_equal(positions, policy.act(OBSERVATIONS))


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_acts_the_same_after_saving_and_loading(name, tmp_path):
    policy = make(name)
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert type(loaded) is POLICIES[name]
    assert loaded.arguments() == policy.arguments()
    assert np.array_equal(loaded.act(OBSERVATIONS), policy.act(OBSERVATIONS))


@pytest.mark.parametrize("name", POLICIES)
def test_what_a_policy_hands_out_is_a_copy(name):
    policy = make(name)
    before = policy.act(OBSERVATIONS)
    for tensor in policy.tensors().values():
        tensor.fill_(0.5)
    policy.act(OBSERVATIONS)[:] = 9.0
    assert np.array_equal(policy.act(OBSERVATIONS), before)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("obs", [np.zeros(3), np.array([[np.nan]]), np.array([[np.inf]])])
def test_bad_observations_are_refused(name, obs):
    with pytest.raises(ValueError, match="observations"):
        make(name).act(obs)


@pytest.mark.parametrize("name", ["cells", "gaussian_mlp", "sb3_mlp"])
def test_a_network_refuses_observations_of_another_size(name):
    with pytest.raises(ValueError, match=r"must be of shape \(N, 1\); got"):
        make(name).act(np.zeros((2, 3)))


def test_the_global_generators_are_untouched_by_making_a_network():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)  # noqa: NPY002
    GaussianMLP(3, 2, seed=1).act(np.zeros((2, 3)))
    SB3MLP(3, 2)
    CellMLP(2, 3, 2).act(np.zeros((2, 3)))
    assert torch.equal(torch.get_rng_state(), torch_state)
    after = np.random.get_state(legacy=False)  # noqa: NPY002
    assert np.array_equal(after["state"]["key"], numpy_state["state"]["key"])


def test_a_seed_decides_the_initial_weights():
    weights = [
        torch.cat([p.flatten() for p in GaussianMLP(1, 2, seed=seed).parameters()])
        for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_initial_weights_have_the_spread_of_a_torch_linear():
    policy = GaussianMLP(1, 2, seed=0)
    weight, bias = policy.body[2].weight.detach(), policy.body[2].bias.detach()
    assert weight.abs().max() <= 1 / 8 and bias.abs().max() <= 1 / 8
    assert math.isclose(weight.std(), 1 / 8 / math.sqrt(3), rel_tol=0.05)


def test_the_network_is_the_papers():
    # Linear(1, 64), Linear(64, 64), Linear(64, 4): appendix A.1
    assert sum(p.numel() for p in GaussianMLP(1, 2).parameters()) == 128 + 4160 + 260


def test_the_initial_standard_deviation_is_the_same_everywhere():
    _, log_std = GaussianMLP(1, 2, seed=5)(torch.linspace(0, 1, 7)[:, None])
    assert torch.equal(log_std, torch.full((7, 2), -0.5))


def test_log_std_is_clamped():
    policy = GaussianMLP(1, 2, seed=0)
    with torch.no_grad():
        policy.head.bias[2:] = torch.tensor([-9.0, 9.0])
    _, log_std = policy(torch.zeros(1, 1))
    assert log_std.tolist() == [[-5.0, 2.0]]


def test_the_gaussians_mean_action_is_the_tanh_of_its_mean():
    policy = GaussianMLP(1, 2, seed=0)
    with torch.no_grad():
        policy.head.weight[:] = 0.0
        policy.head.bias[:] = torch.tensor([0.5, -3.0, 0.0, 0.0])
    assert np.allclose(policy.act(np.zeros((1, 1))), [[math.tanh(0.5), math.tanh(-3.0)]])


def test_the_sb3_actors_mean_action_is_clipped():
    policy = SB3MLP(1, 2)
    with torch.no_grad():
        policy.head.bias[:] = torch.tensor([0.5, -3.0])
    assert policy.act(np.zeros((1, 1))).tolist() == [[0.5, -1.0]]


def randomized_cells(num_rows=3, **arguments) -> CellMLP:
    policy = CellMLP(num_rows, 2, 4, hidden_size=5, **arguments)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        policy.head_weight.uniform_(-1.0, 1.0, generator=generator)
    return policy


def test_a_row_of_the_stack_is_a_network_of_plain_linear_layers():
    policy = randomized_cells()
    obs = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(1))
    mean, log_std = policy(obs)
    hidden = torch.tanh(obs[1] @ policy.weight_1[1] + policy.bias_1[1])
    hidden = torch.tanh(hidden @ policy.weight_2[1] + policy.bias_2[1])
    head = hidden @ policy.head_weight[1] / math.sqrt(5) + policy.head_bias[1]
    assert head.shape == (6, 4)
    assert torch.allclose(mean[1], torch.tanh(head), atol=1e-6)
    assert torch.equal(log_std[1], policy.log_std[1].expand(6, 4))


def test_log_std_is_a_number_per_row_and_cell_that_no_observation_and_no_other_weight_moves():
    policy = randomized_cells(initial_std=(0.05, 0.1, 0.2, 0.4))
    with torch.no_grad():
        policy.log_std += 0.1 * torch.arange(3.0)[:, None, None] - 0.1
    assert policy.log_std.shape == (3, 1, 4)
    obs = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
    mean, log_std = policy(obs)
    assert mean.shape == log_std.shape == (3, 6, 4)
    assert torch.equal(log_std, policy.log_std.expand(3, 6, 4))
    assert not torch.equal(mean[:, 0], mean[:, 1])
    assert torch.equal(policy(100.0 * obs)[1], log_std)
    inputs = {"obs": obs, **dict(policy.named_parameters())}
    gradients = torch.autograd.grad(log_std.sum(), list(inputs.values()), allow_unused=True)
    reached = {
        name for name, gradient in zip(inputs, gradients, strict=True) if gradient is not None
    }
    assert reached == {"log_std"}
    gradients = torch.autograd.grad(mean.sum(), list(inputs.values()), allow_unused=True)
    unreached = {name for name, gradient in zip(inputs, gradients, strict=True) if gradient is None}
    assert unreached == {"log_std"}


def test_a_spec_is_saved_whole_and_an_unknown_field_of_it_is_refused(tmp_path):
    policy = make("neutral")
    policy.spec = ControllerSpec(
        channels=(("lr", "run"), ("weight_decay", "run")), observation=("progress",), interval=7
    )
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy").spec
    assert json.loads(json.dumps(policy.spec.values())) == json.loads(json.dumps(loaded.values()))
    assert loaded.arguments()["channels"] == [["lr", "run"], ["weight_decay", "run"]]
    tensors, metadata = load_state(tmp_path / "policy", "policy")
    changed = {key: value for key, value in metadata.items() if key != "kind"}
    changed["spec"] = changed["spec"] | {"mapping": "move"}
    save_state(tmp_path / "bad", "policy", tensors, changed)
    with pytest.raises(ValueError, match="a spec must have the fields"):
        load_policy(tmp_path / "bad")


def test_one_network_decides_any_number_of_rows_and_several_decide_one_each():
    shared = randomized_cells(num_rows=1)
    obs = torch.randn(5, 2, generator=torch.Generator().manual_seed(1)).numpy()
    alone = np.concatenate([shared.act(row[None]) for row in obs])
    assert np.allclose(shared.act(obs), alone, atol=1e-6)
    with pytest.raises(ValueError, match="must have 3 rows, one for each network; got 5"):
        randomized_cells().act(obs)


def test_no_row_of_the_stack_reaches_another():
    policy = randomized_cells()
    obs = np.ones((3, 2), dtype=np.float32)
    before = policy.act(obs)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter[2] = math.nan
    assert np.array_equal(policy.act(obs)[:2], before[:2])
    assert not np.array_equal(before[0], before[1])


def test_cells_start_where_they_are_told_whatever_is_observed():
    policy = CellMLP(2, 3, 2, initial_mean=(0.5, -0.9), initial_std=(0.1, 0.04))
    mean, log_std = policy(torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(mean, torch.tensor([0.5, -0.9]))
    assert torch.allclose(log_std.exp(), torch.tensor([0.1, 0.04]))
    assert not CellMLP(2, 3, 2).act(np.ones((2, 3))).any()


def test_what_is_common_is_added_to_every_cell_of_its_group_and_the_sum_clipped():
    policy = CellMLP(1, 1, 3, hidden_size=2, common=(0, 1, 0))
    raw = torch.tensor([[0.1, 0.2, 0.8, 0.5, -0.3]])
    assert torch.allclose(policy.positions(raw), torch.tensor([[0.6, -0.1, 1.0]]))


def test_a_standard_deviation_outside_its_bounds_finds_its_way_back():
    policy = CellMLP(1, 1, 2, hidden_size=2)
    low, high = (math.log(bound) for bound in policy.std_bounds)
    with torch.no_grad():
        policy.log_std[:] = torch.tensor([low - 1.0, high + 1.0])
    for sign, expected in (
        (1.0, [0.0, 1.0]),
        (-1.0, [-1.0, 0.0]),
    ):  # of the loss, and what of it is kept
        policy.zero_grad()
        _, log_std = policy(torch.zeros(1, 1, 1))
        assert torch.allclose(log_std, torch.tensor([low, high]))
        (sign * log_std).sum().backward()
        assert policy.log_std.grad[0, 0].tolist() == expected


@pytest.mark.parametrize(
    "change",
    [
        {"num_rows": 0},
        {"hidden_size": 0},
        {"initial_mean": 1.0},
        {"initial_mean": (0.1,)},
        {"initial_std": 0.6},
        {"std_bounds": (0.5, 0.1)},
        {"common": (0,)},
        {"common": (0, 2)},
        {"seeds": (1,)},
    ],
)
def test_bad_arguments_of_cells_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}s? must be .*; got"):
        CellMLP(**{"num_rows": 2, "observation_size": 1, "action_size": 2, **change})


@pytest.mark.parametrize(
    ("num_steps", "interval"),
    [(561, 50), (600, 50), (49, 1), (561, 7), (10, 10), (100_000, 3), (999_983, 1000)],
)
def test_every_decision_reads_its_own_row_of_the_table(num_steps, interval):
    steps = np.arange(0, num_steps, interval)
    table = np.linspace(-1, 1, len(steps))[:, None]
    progress = (steps / num_steps).astype(np.float32)[:, None]
    assert np.array_equal(ScheduleTable(table).act(progress), table.astype(np.float32))


def test_the_table_holds_its_last_row_at_the_end_of_the_run():
    assert ScheduleTable([[0.1], [0.2]]).act(np.ones((1, 1))) == np.float32(0.2)


def test_the_table_reads_the_column_it_is_told_to():
    table = ScheduleTable([[0.1], [0.2]], progress_column=2)
    obs = np.array([[9.0, 9.0, 0.0], [9.0, 9.0, 0.5]])
    assert table.act(obs).tolist() == [[np.float32(0.1)], [np.float32(0.2)]]
    with pytest.raises(ValueError, match="columns"):
        table.act(np.zeros((1, 2)))


@pytest.mark.parametrize("positions", [[0.0, 1.0], [[1.5]], [[np.nan]], np.zeros((0, 2))])
def test_a_bad_table_is_refused(positions):
    with pytest.raises(ValueError, match="positions"):
        ScheduleTable(positions)


@pytest.mark.parametrize(
    "arguments",
    [
        {"observation_size": 0, "action_size": 2},
        {"observation_size": 1, "action_size": 0},
        {"observation_size": 1, "action_size": 2, "hidden_sizes": (64, 0)},
        {"observation_size": 1, "action_size": 2, "initial_log_std": 3.0},
    ],
)
def test_bad_sizes_are_refused(arguments):
    with pytest.raises(ValueError, match=r"must be .*; got"):
        GaussianMLP(**arguments)


def test_what_is_no_policy_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"policy must be one of .*'Neutral'.*; got object"):
        save_policy(object(), tmp_path / "a")  # type: ignore[arg-type]
    save_state(tmp_path / "b", "agent", {"x": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="must hold a saved 'policy'; got 'agent'"):
        load_policy(tmp_path / "b")
    save_state(tmp_path / "c", "policy", {}, {"policy": "polcy", "arguments": {}} | SPEC)
    with pytest.raises(ValueError, match="unknown policy 'polcy'"):
        load_policy(tmp_path / "c")


def test_names_that_are_not_one_per_column_are_neither_written_nor_read(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"action_names must be 2 names, one per column of the policy; got \['lr'\]",
    ):
        save_policy(named(Neutral(2), ("progress",), ("lr",)), tmp_path / "policy")
    with pytest.raises(ValueError, match="observation_names must be 1"):
        save_policy(named(SB3MLP(1, 2), ("progress", "loss")), tmp_path / "policy")
    tensors, metadata = saved(tmp_path / "good", "schedule_table")
    given = {key: value for key, value in metadata.items() if key != "kind"}
    given["spec"] = given["spec"] | {"action_names": ["a", "b", "c"]}
    save_state(tmp_path / "bad", "policy", tensors, given)
    with pytest.raises(ValueError, match=r"bad/state\.json: action_names must be 2"):
        load_policy(tmp_path / "bad")


def named(policy, observation_names=(), action_names=()):
    """Gives a policy names for its columns."""
    policy.spec = ControllerSpec(observation_names=observation_names, action_names=action_names)
    return policy


def saved(folder, name):
    """Tensors and metadata as `save_policy` gives them to `save_state`."""
    save_policy(make(name), folder)
    return load_state(folder, "policy")


@pytest.mark.parametrize("name", POLICIES)
def test_a_field_that_is_missing_too_many_or_of_another_type_is_refused_by_name(name, tmp_path):
    tensors, metadata = saved(tmp_path / "good", name)
    for key in ("policy", "arguments", "spec"):
        less = {other: value for other, value in metadata.items() if other not in (key, "kind")}
        for changed in (less, less | {key: 7}):
            save_state(tmp_path / "bad", "policy", tensors, changed)
            with pytest.raises(
                ValueError,
                match=rf"bad/state\.json: metadata must have '{key}'.*; copy the folder again",
            ):
                load_policy(tmp_path / "bad")
    given = {key: value for key, value in metadata.items() if key != "kind"}
    save_state(tmp_path / "bad", "policy", tensors, given | {"extra": 1})
    with pytest.raises(ValueError, match=r"bad/state\.json: metadata holds \['extra'\]"):
        load_policy(tmp_path / "bad")
    for argument, value in given["arguments"].items():
        less = {other: one for other, one in given["arguments"].items() if other != argument}
        for changed in (
            less,
            less | {argument: "abc"},
            less | {argument: {}},
            less | {argument: value, "extra": 1},
        ):
            save_state(tmp_path / "bad", "policy", tensors, given | {"arguments": changed})
            with pytest.raises(ValueError, match=r"bad/state\.json.*; copy the folder again"):
                load_policy(tmp_path / "bad")


@pytest.mark.parametrize("name", [name for name in POLICIES if make(name).tensors()])
def test_a_tensor_that_is_missing_too_many_of_another_shape_or_type_or_a_nan_is_refused_by_name(
    name, tmp_path
):
    tensors, metadata = saved(tmp_path / "good", name)
    given = {key: value for key, value in metadata.items() if key != "kind"}
    key, tensor = next(iter(tensors.items()))
    changes = (
        {other: value for other, value in tensors.items() if other != key},
        tensors | {"extra": torch.zeros(1)},
        tensors | {key: torch.zeros(3, 5, 2)},
        tensors | {key: tensor.double()},
        tensors | {key: torch.full_like(tensor, math.nan)},
    )
    for changed in changes:
        save_state(tmp_path / "bad", "policy", changed, given)
        with pytest.raises(ValueError, match=r"bad/tensors\.safetensors") as refusal:
            load_policy(tmp_path / "bad")
        assert key in str(refusal.value) or "extra" in str(refusal.value)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("keep", [0, 7, 40])
@pytest.mark.parametrize("file", [TENSORS, STATE, MANIFEST])
def test_a_file_that_was_cut_off_is_named_with_the_cure(file, keep, tmp_path):
    save_policy(make("sb3_mlp"), tmp_path / "policy")
    path = tmp_path / "policy" / file
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        ValueError, match=rf"policy/{file} is damaged.*; copy the folder again, or save"
    ):
        load_policy(tmp_path / "policy")


@pytest.mark.parametrize("file", [TENSORS, STATE])
def test_a_file_that_was_cut_off_before_its_digest_was_taken_is_named_too(file, tmp_path):
    save_policy(make("sb3_mlp"), tmp_path / "policy")
    path, manifest = tmp_path / "policy" / file, tmp_path / "policy" / MANIFEST
    content = path.read_bytes()[:40]
    path.write_bytes(content)
    body = json.loads(manifest.read_text())
    del body["sha256_of_the_above"]
    body["files"][file] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest.write_bytes(snapshots._sign(body))
    with pytest.raises(
        ValueError, match=rf"policy/{file} is damaged.*; copy the folder again, or save"
    ):
        load_policy(tmp_path / "policy")


def test_the_folder_of_a_training_run_stands_for_its_policy_and_other_folders_are_refused(tmp_path):
    policy = named(Neutral(2), ("progress",), ("lr", "weight_decay"))
    save_policy(policy, tmp_path / "run" / "policy")
    loaded = load_policy(tmp_path / "run")
    assert loaded.action_size == 2
    loaded.spec.check(Columns(1, 1, ("progress",), ("lr", "weight_decay"), (), ()))
    with pytest.raises(ValueError, match="made for the action_names"):
        loaded.spec.check(Columns(1, 1, ("progress",), ("lr",), (), ()))
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(
        ValueError, match=r"unfinished must hold a saved policy; .* training run that has finished"
    ):
        load_policy(tmp_path / "unfinished")
    with pytest.raises(
        ValueError,
        match=r"no snapshot at .*absent.*; expected the folder of a saved policy, or of a",
    ):
        load_policy(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="file"):
        load_policy(tmp_path / "file")


def test_saving_over_a_policy_replaces_it(tmp_path):
    save_policy(Neutral(2), tmp_path / "policy")
    save_policy(Neutral(3), tmp_path / "policy")
    assert load_policy(tmp_path / "policy").action_size == 3
    assert load_state(tmp_path / "policy", "policy")[1]["policy"] == "neutral"


def test_policies_need_no_stable_baselines3():
    code = "import sys, hpenv.policies; sys.exit('stable_baselines3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
