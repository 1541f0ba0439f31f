"""A controller that an optimizer cannot serve is refused by name, with what to do."""

import gymnasium as gym
import numpy as np
import pytest
import torch

import hpenv
from hpenv.benchmark.environments import make_population, spec_of
from hpenv.deploy import attach
from hpenv.policies import GaussianMLP, Neutral, ScheduleTable, UpdateRatio, save_policy
from tests.hpenv.deploy.loops import STEPS, Constant, Recorder, model, train

gym.register_envs(hpenv)
TINY = {"data": "synthetic", "batch_tokens": 64, "sequence_length": 16, "num_steps": 12}


def sgd():
    return torch.optim.SGD(model().parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("controller", "text"),
    [
        (Constant(0.0, channels=[("dropout", "run")]), "'dropout', which an optimizer .* expected"),
        (
            Constant(0.0, channels=[("lr", "layer")]),
            r"scope 'layer'.*\['run', 'optimizer', 'group'",
        ),
        (Constant(0.0, channels=[("beta1", "run")]), "no group has the key 'betas'; got .*'lr'"),
        (Constant(0.0, observation=["progress", "layer_saturation"]), "'layer_saturation' reads"),
        (Constant(0.0, observation=["progress", "probe_loss"]), "need the argument `probe`"),
        (Constant(0.0, observation=["train_loss"]), "must include 'progress'"),
        (Constant(0.0, observation=["progress", "registers"]), "must not have 'registers'"),
        (Neutral(3), r"sets 3 cells; the optimizer has 1: \['lr'\].*as `channels`"),
        (object(), "a controller must have `spec`"),
    ],
)
def test_what_the_optimizer_does_not_have_is_named(controller, text):
    every = None if isinstance(controller, Constant) else 2
    with pytest.raises(ValueError, match=text):
        attach(sgd(), controller, total_steps=STEPS, every=every)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("channels", "foundational", "must be .* pairs outside of hpenv.*got 'foundational'"),
        ("channels", ["lr"], r"pairs outside of hpenv.*got \['lr'\]"),
        ("observation", "full", "must be a list of features outside of hpenv.*got 'full'"),
        ("num_registers", 2, "num_registers of the controller must be 0 .* got 2"),
        ("interval", None, "every must be given, as every=10"),
    ],
)
def test_a_spec_that_depends_on_an_id_is_refused(field, value, text):
    controller = Constant(0.0)
    controller.spec = controller.spec.from_values(controller.spec.values() | {field: value})
    with pytest.raises(ValueError, match=text):
        attach(sgd(), controller, total_steps=STEPS)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"total_steps": 0}, "total_steps must be a whole number"),
        ({"total_steps": 4, "every": 5}, "every must be .* from 1 to total_steps=4; got 5"),
        ({"total_steps": 4, "keys": ("betas",)}, r"keys must have 'lr'.*got \['betas'\]"),
        ({"total_steps": 4, "keys": ("rate",)}, r"keys must be some of \['lr'.*got \['rate'\]"),
        ({"total_steps": 4, "channels": [("lr", "run")]}, "channels must not be given"),
        ({"total_steps": 4, "observation": ["progress"]}, "observation must not be given"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        attach(sgd(), Constant(0.0), **arguments)


def test_wrappers_and_second_controllers_are_refused():
    optimizer = sgd()

    class Wrapper:
        def __init__(self, **places):
            vars(self).update(places)

    for wrapper, place in ((Wrapper(optimizer=optimizer), "optimizer"),
                           (Wrapper(optimizers=[optimizer]), r"optimizers\[i\]")):  # fmt: skip
        with pytest.raises(ValueError, match=f"Wrapper, a wrapper; attach to its .{place}"):
            attach(wrapper, Constant(0.0), total_steps=STEPS)
    with pytest.raises(ValueError, match=r"must be a torch.optim.Optimizer; got int"):
        attach(3, Constant(0.0), total_steps=STEPS)
    attach(optimizer, Constant(0.0), total_steps=STEPS)
    with pytest.raises(ValueError, match=r"one controller; detach\(\)"):
        attach(optimizer, Constant(0.0), total_steps=STEPS)


def test_names_of_groups_must_differ():
    net = model()
    groups = [{"params": [p], "name": "same"} for p in net.parameters()]
    with pytest.raises(ValueError, match="names of groups must differ; got"):
        attach(Recorder(groups), Constant(0.0), total_steps=STEPS)


def trained_policy(path, **arguments):
    """The folder of a policy that was made for an environment."""
    env = make_population("TrainLoop-JEL-v0", 1, TINY | arguments)
    policy = GaussianMLP(len(env.observation_names), len(env.action_names), seed=0)
    policy.spec = spec_of(env)
    save_policy(policy, path)
    return path


def test_a_policy_of_an_environment_works_on_any_optimizer_at_the_scope_run(tmp_path):
    folder = trained_policy(tmp_path / "policy", observation="gradient", interval=4)
    net = model()
    opt = torch.optim.AdamW(net.parameters(), lr=0.01)
    attachment = attach(opt, folder, total_steps=STEPS)
    train(net, opt, attachment=attachment)
    assert [d.step for d in attachment.history] == [0, 4, 8] and not attachment.fault
    assert set(attachment.history[0].multipliers) == {"lr", "weight_decay"}


def test_a_policy_at_groups_fits_groups_of_its_names_in_its_order(tmp_path):
    folder = trained_policy(tmp_path / "policy", channels=[["lr", "group"]], interval=4)
    net = model()
    names = ["embedding", "matrix", "unembedding"]
    groups = [{"params": [p], "name": n} for p, n in zip(net.parameters(), names, strict=True)]
    attach(torch.optim.AdamW(groups), folder, total_steps=STEPS)
    for wrong in (groups[::-1], groups[:2], [{"params": list(net.parameters())}]):
        wrong = [dict(group, params=list(group["params"])) for group in wrong]
        with pytest.raises(ValueError, match=r"made for the action_names.*named by group"):
            attach(torch.optim.AdamW(wrong), folder, total_steps=STEPS)


def test_a_policy_per_optimizer_fits_the_rule_of_its_name(tmp_path):
    arguments = {"channels": [["lr", "optimizer"]], "optimizer": "adamw", "interval": 4}
    folder = trained_policy(tmp_path / "policy", **arguments)
    parameters = list(model().parameters())
    attach(torch.optim.AdamW(parameters), folder, total_steps=STEPS)
    with pytest.raises(ValueError, match=r"\['lr/adamw'\]; the environment has \['lr/sgd'\]"):
        attach(torch.optim.SGD(parameters, lr=0.1), folder, total_steps=STEPS)


def test_a_policy_without_names_is_given_its_channels():
    table = ScheduleTable(np.array([[0.5, 0.0], [-0.5, 0.5]]))
    net = model()
    opt = Recorder(net.parameters(), weight_decay=0.1)
    pairs = [("lr", "run"), ("weight_decay", "run")]
    attach(opt, table, total_steps=STEPS, every=6, channels=pairs)
    train(net, opt)
    assert [round(s[0]["lr"], 9) for s in opt.seen] == [1.0] * 6 + [0.01] * 6
    assert [round(s[0]["weight_decay"], 9) for s in opt.seen] == [0.1] * 6 + [1.0] * 6


def test_a_class_is_refused_with_how_to_make_an_instance():
    with pytest.raises(ValueError, match=r"the class UpdateRatio.*give UpdateRatio\(\)"):
        attach(sgd(), UpdateRatio, total_steps=STEPS, every=2)


def test_a_feature_is_checked_before_the_interval():
    controller = Constant(0.0)
    values = controller.spec.values() | {"observation": ["progress", "train_los"], "interval": None}
    controller.spec = controller.spec.from_values(values)
    with pytest.raises(ValueError, match="did you mean 'train_loss'"):
        attach(sgd(), controller, total_steps=STEPS)
