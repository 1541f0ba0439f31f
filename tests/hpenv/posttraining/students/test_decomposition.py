"""Decompositions of weights, whose cache cannot be stale, and digests of weights."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from hpenv.posttraining.students.adapter import attach, decompose, weight_digest, weights_digest
from tests.hpenv.posttraining.students.tiny_modules import randn


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
