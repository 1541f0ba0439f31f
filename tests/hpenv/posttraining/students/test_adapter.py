"""The adapter: the layer itself at 0, a gradient by hand, and two forms that agree."""

import pytest
import torch
from torch import nn

from hpenv.posttraining.students.adapter import (
    FORMS,
    AntiPaSTOLinear,
    ablate_quarantine,
    adapted_weight,
    attach,
    decompose,
    detach,
)
from tests.hpenv.posttraining.students.tiny_modules import randn


def linear(out, into, bias=True, seed=0):
    layer = nn.Linear(into, out, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(randn(out, into, seed=seed))
        if bias:
            layer.bias.copy_(randn(out, seed=seed + 1))
    return layer


class Block(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.q_proj = linear(12, 12, bias=False, seed=seed)
        self.up_proj = linear(20, 12, seed=seed + 1)
        self.down_proj = linear(12, 20, seed=seed + 2)
        self.norm = nn.LayerNorm(12)

    def forward(self, x):
        x = x + self.q_proj(self.norm(x))
        return x + self.down_proj(torch.relu(self.up_proj(x)))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block(0), Block(10)])
        self.lm_head = linear(7, 12, bias=False, seed=20)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


def test_rows_whose_knob_is_zero_have_the_weight_bit_for_bit():
    weight = randn(8, 5)
    knob = torch.stack([torch.zeros(5), randn(5, seed=1), torch.zeros(5)])
    result = adapted_weight(weight, decompose(weight), knob)
    assert result.shape == (3, 8, 5)
    assert torch.equal(result[0], weight) and torch.equal(result[2], weight)
    assert not torch.equal(result[1], weight)


def test_a_knob_of_one_axis_adds_to_that_singular_value():
    weight = randn(8, 5)
    knob = torch.zeros(1, 5)
    knob[0, 2] = 0.75
    S = decompose(weight).S
    moved = torch.linalg.svdvals(adapted_weight(weight, decompose(weight), knob)[0])
    expected = torch.sort(S + knob[0], descending=True).values
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)


def test_the_gradient_of_the_knob_is_the_sum_over_tokens_of_both_rotated_factors():
    weight = randn(8, 5)
    U, _, Vh = decompose(weight)
    x, out = randn(11, 5, seed=1), randn(11, 8, seed=2)  # tokens, and dL/dy of each
    by_hand = torch.stack([(Vh @ x[t]) * (U.T @ out[t]) for t in range(11)]).sum(0)
    for form in FORMS:
        layer = nn.Linear(5, 8)
        layer.weight.data.copy_(weight)
        adapter = AntiPaSTOLinear(layer, form)
        (adapter(x) * out).sum().backward()
        torch.testing.assert_close(adapter.coefficients.grad, by_hand, atol=1e-5, rtol=1e-5)
    knob = torch.zeros(1, 5, requires_grad=True)
    (x @ adapted_weight(weight, decompose(weight), knob)[0].T * out).sum().backward()
    torch.testing.assert_close(knob.grad[0], by_hand, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_module_and_the_adapted_weight_are_one_function(form):
    layer = linear(8, 5)
    adapter = AntiPaSTOLinear(layer, form)
    adapter.coefficients.data.copy_(randn(5, seed=3))
    x = randn(4, 6, 5, seed=2)
    weight = adapted_weight(layer.weight, decompose(layer.weight), adapter.coefficients[None])[0]
    torch.testing.assert_close(adapter(x), x @ weight.T + layer.bias, atol=1e-5, rtol=1e-5)


def test_at_zero_the_additive_form_is_the_layer_bitwise_and_the_replacement_within_the_papers_tolerance():  # noqa: E501
    layer, x = linear(40, 64), randn(10, 64, seed=2)
    expected = layer(x)
    assert torch.equal(AntiPaSTOLinear(layer)(x), expected)
    replaced = AntiPaSTOLinear(layer, "replacement")(x)
    assert 0 < (replaced - expected).abs().max() < 1e-3


def test_attaching_wraps_the_targets_and_trains_only_their_knobs():
    model = Model()
    adapters = attach(model)
    names = [f"layers.{i}.{end}" for i in (0, 1) for end in ("q_proj", "up_proj", "down_proj")]
    assert list(adapters) == names
    assert all(model.get_submodule(name) is adapter for name, adapter in adapters.items())
    assert isinstance(model.lm_head, nn.Linear)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"{name}.coefficients" for name in names
    }
    model(randn(3, 12)).square().sum().backward()
    assert all(adapter.coefficients.grad.abs().sum() > 0 for adapter in adapters.values())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("quarantine", [False, True])
def test_detaching_gives_back_the_model_bitwise(form, quarantine):
    model, x = Model(), randn(3, 12)
    expected, state = model(x), {name: t.clone() for name, t in model.state_dict().items()}
    adapters = attach(model, form=form, quarantine=quarantine)
    if form == "additive":
        assert torch.equal(model(x), expected)
    for adapter in adapters.values():
        adapter.coefficients.data.add_(0.3)
    assert not torch.allclose(model(x), expected, atol=1e-2)
    detach(model)
    assert torch.equal(model(x), expected)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(model.state_dict()[name], t) for name, t in state.items())


def test_the_quarantine_adds_to_the_knob_until_it_is_ablated():
    model, x = Model(), randn(3, 12)
    adapters = attach(model, quarantine=True)
    base = model(x)
    for adapter in adapters.values():
        adapter.quarantine.data.add_(0.2)
    together = model(x)
    with ablate_quarantine(adapters):
        assert torch.equal(model(x), base)
    assert torch.equal(model(x), together) and not torch.allclose(together, base, atol=1e-3)
    for adapter in adapters.values():
        adapter.coefficients.data.add_(0.2)
        adapter.quarantine.data.zero_()
    torch.testing.assert_close(model(x), together)
    model(x).sum().backward()
    assert all(
        torch.equal(adapter.quarantine.grad, adapter.coefficients.grad)
        for adapter in adapters.values()
    )


def test_a_bfloat16_layer_keeps_its_dtype_and_a_float32_knob():
    layer, x = linear(8, 5).bfloat16(), randn(4, 5).bfloat16()
    for form in FORMS:
        adapter = AntiPaSTOLinear(layer, form)
        assert adapter(x).dtype == torch.bfloat16 and adapter.coefficients.dtype == torch.float32
        torch.testing.assert_close(adapter(x), layer(x), atol=0.1, rtol=0.05)


def test_what_cannot_be_adapted_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"weight must be a matrix of floats; got shape \(3,\), torch.float32"
    ):
        decompose(torch.zeros(3))
    with pytest.raises(ValueError, match="non-finite"):
        decompose(torch.tensor([[1.0, torch.nan]]))
    with pytest.raises(ValueError, match=r"coefficients must have shape \(N, 5\); got \(5,\)"):
        adapted_weight(randn(8, 5), decompose(randn(8, 5)), torch.zeros(5))
    with pytest.raises(ValueError, match=r"unknown form 'sum'.*'additive', 'replacement'"):
        AntiPaSTOLinear(linear(3, 3), "sum")
    with pytest.raises(ValueError, match=r"some of \['down_proj', 'lm_head'.*; got \['c_attn'\]"):
        attach(Model(), targets=("c_attn",))
    model = Model()
    attach(model)
    with pytest.raises(ValueError, match=r"must have no adapters; got one at 'layers.0.q_proj'"):
        attach(model)
