"""Shapes, presets and initial weights."""

import math

import pytest
import torch

from hpenv.lm import architecture, model
from hpenv.lm.architecture import GPTConfig
from tests.hpenv.lm.reference_model import random_batch


def num_parameters(config):
    return sum(math.prod(shape) for shape in architecture.parameter_shapes(config).values())


def test_nano_has_131072_parameters():
    assert num_parameters(architecture.preset("nano")) == 131_072


def test_jel_73m_has_73531692_parameters_and_its_forward_pass_fits_on_the_meta_device():
    config = architecture.preset("jel-73m")
    assert num_parameters(config) == 73_531_692
    params = {
        name: torch.empty(1, *shape, device="meta")
        for name, shape in architecture.parameter_shapes(config).items()
    }
    assert sum(value.numel() for value in params.values()) == 73_531_692
    assert [i for i in range(6) if f"layer.{i}.value_embedding" in params] == [1, 3, 5]
    tokens = torch.zeros(1, 2, 8, dtype=torch.int64, device="meta")
    losses = model.mean_losses(params, config, tokens, tokens, model.rope_tables(config, 8, "meta"))
    assert losses.shape == (1,) and losses.device.type == "meta"


def test_cell11_has_77_body_tensors():
    body = [
        name
        for name in architecture.parameter_shapes(architecture.preset("cell11"))
        if name.startswith("layer.")
    ]
    assert len(body) == 77
    assert {name.split(".")[2] for name in body} == {
        "query",
        "key",
        "value",
        "output",
        "gate",
        "up",
        "down",
    }
    assert all(architecture.parameter_kind(name) == "matrix" for name in body)


@pytest.mark.parametrize("name", ["nano", "cell11", "shakespeare"])
def test_an_untrained_run_guesses_uniformly(name):
    config = architecture.preset(name)
    inputs, targets = random_batch(config, 2, (4, 32))
    params = architecture.init_parameters(config, [3, 4])
    losses = model.mean_losses(
        params, config, inputs, targets, model.rope_tables(config, 32, "cpu")
    )
    assert losses.tolist() == pytest.approx([math.log(256)] * 2, abs=0.01)


def test_initial_weights_are_those_of_the_seed_in_any_row():
    config = architecture.preset("nano")
    population, single = (
        architecture.init_parameters(config, [5, 6, 7]),
        architecture.init_parameters(config, [6]),
    )
    for name, value in population.items():
        assert torch.equal(value[1:2], single[name])
        assert torch.equal(value[0], value[1]) == (name.endswith(("output", "down"))), name
        assert tuple(value.shape[1:]) == architecture.parameter_shapes(config)[name]


def test_initial_spreads_are_nanochats():
    params = architecture.init_parameters(architecture.preset("nano"), [0])
    assert params["embedding"].std().item() == pytest.approx(1.0, rel=0.05)
    assert params["unembedding"].std().item() == pytest.approx(0.001, rel=0.05)
    assert params["layer.0.up"].std().item() == pytest.approx(1 / 8, rel=0.05)
    assert params["layer.0.up"].abs().max().item() <= math.sqrt(3) / 8


def test_a_preset_grows_to_the_vocabulary_of_the_corpus():
    assert architecture.preset("nano", 1000).vocab_size == 1000
    assert architecture.preset("jel-73m", 256).vocab_size == 32_768


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"n_embd": 65},
            "n_embd must be an even multiple of n_head .*; got n_embd=65 and n_head=2",
        ),
        ({"n_embd": 6}, "n_embd must be an even multiple of n_head .*; got n_embd=6 and n_head=2"),
        ({"feed_forward": "gelu"}, r"'gelu'; expected one of \['relu2', 'swiglu'\]"),
        ({"window_pattern": "SX"}, "window_pattern must be made of 'S' and 'L'; got 'SX'"),
        ({"window_pattern": ""}, "window_pattern must be made of 'S' and 'L'; got ''"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**arguments)


def test_an_unknown_preset_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"unknown preset 'nan0'; expected one of \['cell11', 'jel-73m', 'nano'"
    ):
        architecture.preset("nan0")
