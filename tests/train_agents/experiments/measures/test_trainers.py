"""Runs of GPT-2 in the Trainer of transformers."""

import math

import pytest
import torch

from train_agents.experiments.measures import trainers

pytest.importorskip("accelerate", reason="needs accelerate: pip install 'hpenv[posttraining]'")
RUN = {
    "model": {"n_layer": 1, "n_embd": 16, "sequence_length": 16},
    "schedule": "linear",
    "num_steps": 12,
    "batch_rows": 2,
    "eval_rows": 4,
}
LAW = {"target": 0.02, "warmdown": 0.0, "interval": 5}


def test_groups_have_every_parameter_once_and_the_names_of_hpenvs_models():
    model = trainers.make_model(**RUN["model"])
    groups = trainers.make_optimizer(model, 0.1).param_groups
    assert [group["name"] for group in groups] == ["embedding", "matrix", "unembedding"]
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters())
    assert [len(group["params"]) for group in groups[::2]] == [2, 1]


def test_a_held_out_loss_is_that_of_the_model_and_leaves_it_in_training():
    model = trainers.make_model(**RUN["model"])
    rows = torch.randint(0, 256, (trainers.EVALUATION_ROWS + 3, 17))
    model.eval()
    with torch.no_grad():
        losses = model(input_ids=rows[:, :-1]).logits.log_softmax(-1)
    picked = losses.gather(-1, rows[:, 1:, None])
    assert trainers.evaluate(model, rows) == pytest.approx(-float(picked.mean()), rel=1e-5)
    assert model.training


def test_a_run_is_a_function_of_its_seed_and_the_law_changes_it():
    (plain, other), _ = trainers.run_trainers([1, 2], base_lr=1e-3, **RUN)
    (again,), _ = trainers.run_trainers([1], base_lr=1e-3, **RUN)
    assert plain == again and plain["bpb"] != other["bpb"]
    assert plain["multipliers"] == [] and plain["steps"][-1] == 12
    (held,), _ = trainers.run_trainers([1], kind="ratio_law", arguments=LAW, base_lr=1e-3, **RUN)
    assert held["probe_curve"][0] == plain["probe_curve"][0] and held["bpb"] != plain["bpb"]
    assert held["decisions"] == [0, 5, 10]
    assert held["multipliers"][0] == [1.0, 1.0, 1.0]
    assert all(len(own) == 3 for own in held["multipliers"])


def test_a_text_is_learned():
    longer = RUN | {"num_steps": 60, "batch_rows": 4}
    (row,), _ = trainers.run_trainers([1], base_lr=3e-3, **longer)
    assert row["probe_loss"] < 0.8 * row["probe_curve"][0]
    assert row["probe_curve"][0] == pytest.approx(math.log(256), rel=0.05)


def test_the_lowest_probe_loss_is_chosen_and_a_run_that_diverged_counts_as_untrained():
    rows, extra = trainers.tune_trainers([1e-5, 3e-3], [7], [8], **RUN)
    scores = {entry["configuration"]: entry["probe_loss"] for entry in extra["table"]}
    assert extra["chosen"] == min(scores, key=scores.get) == "0.003"
    assert extra["rate"] == 0.003 and extra["runs_spent"] == 2
    assert rows == trainers.run_trainers([8], base_lr=0.003, **RUN)[0]
    assert trainers._score({"probe_loss": math.nan, "probe_curve": [5.5, 9.0]}) == 5.5
