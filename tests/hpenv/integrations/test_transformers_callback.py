"""A callback that projects the updates of a trainer of transformers."""

from types import SimpleNamespace

import pytest
import torch

from hpenv.integrations.transformers_callback import ProjectionCallback
from hpenv.posttraining.projection.rules import Measures
from tests.hpenv.integrations.small_trainer import (
    LAYERS,
    coefficients_of,
    direction,
    of_layers,
    trained,
    wrapped,
)
from tests.tiny_qwen3 import qwen3, transformers

pytest.importorskip("accelerate", reason="needs accelerate: pip install 'hpenv[posttraining]'")


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


def rounding(g: torch.Tensor) -> float:
    """Returns how far a product of a unit vector and what is left of a vector is off at most.

    With the unit roundoff u: a product of length r is off by r u |g|, and there are three, of which
    one is subtracted; the unit vector is off from its length by r u.
    """
    return 2.0**-24 * (4 * len(g) + 4) * float(g.norm())


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
