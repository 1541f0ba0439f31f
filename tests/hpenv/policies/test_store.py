"""Saved policies: fields, tensors and damage are refused by name."""

import hashlib
import json
import math

import pytest
import torch

from hpenv.plant import snapshots
from hpenv.plant.snapshots import MANIFEST, STATE, TENSORS
from hpenv.policies import POLICIES, ControllerSpec, Neutral, load_policy, save_policy
from hpenv.policies.controller import LATER_FIELDS, Columns
from hpenv.policies.sb3_mlp import SB3MLP
from hpenv.policies.store import load_state, save_state
from tests.hpenv.policies.every_policy import make

SPEC = {"spec": ControllerSpec().values()}


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
    changed["spec"] = changed["spec"] | {"moves": "large"}
    save_state(tmp_path / "bad", "policy", tensors, changed)
    with pytest.raises(ValueError, match="a spec must have the fields"):
        load_policy(tmp_path / "bad")


def test_the_mapping_of_a_policy_is_saved_and_one_from_before_it_sets_positions(tmp_path):
    policy = make("neutral")
    policy.spec = ControllerSpec(mapping="move", max_moves={"lr": (0.02, 0.04)})
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy").spec
    assert loaded.arguments() == {"mapping": "move", "max_moves": {"lr": [0.02, 0.04]}}

    tensors, metadata = load_state(tmp_path / "policy", "policy")
    old = {key: value for key, value in metadata.items() if key != "kind"}
    old["spec"] = {k: v for k, v in old["spec"].items() if k not in LATER_FIELDS}
    save_state(tmp_path / "old", "policy", tensors, old)
    assert load_policy(tmp_path / "old").spec.arguments() == {"mapping": "position"}

    del old["spec"]["interval"]
    save_state(tmp_path / "bad", "policy", tensors, old)
    with pytest.raises(ValueError, match="a spec must have the fields"):
        load_policy(tmp_path / "bad")


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
