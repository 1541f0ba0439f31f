"""The adapter: the layer itself at 0, a gradient by hand, two forms, and a cache.

The two forms agree, and the cache cannot be stale.
"""

from pathlib import Path

import pytest
import safetensors.torch
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
    weight_digest,
    weights_digest,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


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


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (9, 9)])
def test_a_decomposition_multiplies_back_to_the_weight(shape):
    weight = randn(*shape)
    U, S, Vh = decompose(weight)
    r = min(shape)
    assert (U.shape, S.shape, Vh.shape) == ((shape[0], r), (r,), (r, shape[1]))
    assert U.dtype == S.dtype == Vh.dtype == torch.float32
    # Three factors are rounded, and sums of r and of shape[0] products. Rows of U have length <= 1.
    u = 2.0**-24
    torch.testing.assert_close(
        U @ torch.diag(S) @ Vh, weight, atol=(r + 4) * u * S[0].item(), rtol=0
    )
    torch.testing.assert_close(U.T @ U, torch.eye(r), atol=(shape[0] + 2) * u, rtol=0)
    assert (S[:-1] >= S[1:]).all()


def test_a_cached_decomposition_is_the_computed_one_and_a_changed_weight_is_not_given_it(tmp_path):
    weight = randn(6, 4)
    computed = decompose(weight, tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.name == f"{weight_digest(weight)}.safetensors"
    written = file.stat().st_mtime_ns
    for cached, own in zip(decompose(weight, tmp_path), computed, strict=True):
        assert torch.equal(cached, own)
    assert file.stat().st_mtime_ns == written
    changed = weight.clone()
    changed[0, 0] = torch.nextafter(changed[0, 0], torch.tensor(9.0))
    decompose(changed, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_cache_is_really_read(tmp_path, monkeypatch):
    weight = randn(6, 4)
    computed = decompose(weight, tmp_path)
    monkeypatch.setattr(torch.linalg, "svd", None)
    assert torch.equal(decompose(weight, tmp_path).U, computed.U)


def test_a_file_of_the_cache_that_is_not_what_was_written_is_named(tmp_path):
    weight = randn(6, 4)
    decompose(weight, tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    other = safetensors.torch.save({"U": torch.ones(2, 2)})
    bent = {name: tensor * 1.5 for name, tensor in safetensors.torch.load(whole).items()}
    with safetensors.safe_open(file, "pt") as opened:
        header = opened.metadata()
    decompose(randn(6, 4, seed=1), tmp_path)
    (another,) = set(tmp_path.iterdir()) - {file}
    for content, message in (
        (whole[:-9], "must be a whole safetensors file; got '.*' (.*); delete it"),
        (b"", "must be a whole safetensors file"),
        (
            other,
            "must hold the decomposition that was written there, .* got tensors {'U': .*; "
            "delete it",
        ),
        (
            safetensors.torch.save(bent, header),
            "must hold the decomposition that was written there",
        ),
        (another.read_bytes(), "must hold the decomposition that was written there"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message) as refused:
            decompose(weight, tmp_path)
        assert file.name in str(refused.value)


def test_a_place_that_cannot_be_a_cache_is_refused_before_anything_is_computed(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.linalg, "svd", None)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "else")
    for place in (
        tmp_path / "file",
        tmp_path / "file" / "in",
        tmp_path / "link",
        Path("/proc/own"),
        Path("a\0b"),
    ):
        with pytest.raises(
            ValueError,
            match=r"cache_dir must be a folder that can be written to; got '.*' \(.*\); "
            "name another",
        ):
            decompose(randn(6, 4), place)


def test_what_the_caller_has_set_in_torch_changes_no_adapter():
    model = nn.Sequential(nn.Linear(3, 2))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            unusable = nn.Sequential(nn.Linear(3, 2))
            adapters = attach(model, ["0"], quarantine=True)
    finally:
        torch.set_default_dtype(torch.float32)
    with pytest.raises(
        ValueError, match=r"made outside torch.inference_mode, or no gradient passes it"
    ):
        attach(unusable, ["0"])
    with pytest.raises(ValueError, match="targets must be a list of names of layers; got '0'"):
        attach(nn.Sequential(nn.Linear(3, 2)), "0")
    assert adapters["0"].coefficients.dtype == torch.float32
    assert not any(
        x.is_inference()
        for x in (adapters["0"].coefficients, adapters["0"].quarantine, adapters["0"].U)
    )


def test_digests_tell_apart_shapes_dtypes_names_and_bits_and_not_order():
    a, b = randn(2, 6), randn(2, 6, seed=1)
    assert (
        len(
            {
                weight_digest(w)
                for w in (a, a.view(3, 4), a.bfloat16(), a.bfloat16().float(), a.T, b)
            }
        )
        == 6
    )
    assert weights_digest({"a": a, "b": b}) == weights_digest({"b": b, "a": a})
    assert (
        len(
            {
                weights_digest(w)
                for w in ({"a": a, "b": b}, {"a": b, "b": a}, {"a": a}, {"c": a, "b": b})
            }
        )
        == 4
    )


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
