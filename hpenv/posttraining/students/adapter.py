"""AntiPaSTO: a linear layer with one trainable coefficient per singular direction of its weight.

W = U diag(S) Vh, with U, S and Vh frozen and of full rank r = min(out, in). The coefficients
d (r,) start at 0. There are two forms:

    additive     y = W x + b + U (d * Vh x)    equals the layer bit for bit at d = 0
    replacement  y = U ((S + d) * Vh x) + b    one product less, equals the layer up to rounding

With the additive form the reference model needs no second copy. The axes of the coefficients never
move. So a direction found in the basis of W's singular vectors means the same at every step of a
run. This is not true for the rank axis of a low-rank adapter with trainable factors. The gradient
is dL/dd = sum over tokens t of (Vh x_t) * (U^T dL/dy_t). It does not depend on the signs of the
singular vectors, which differ between machines, because those of U and Vh flip together.

Departures: There is no rotation of the basis and no reduced rank (so no residual weight). d starts
at exactly 0, because only 0 is the reference model. One published variant starts at N(4e-4, 4e-4).
The additive form as default is a choice of this project. As in the variants that do not scale
the coefficients by S, they are not scaled here.

References:
    The AntiPaSTO variant of wassname's lora-lite. The reward-hacking experiment that fixes full
    rank and a zero start ("Experiment: rank-space gradient projection vs RL reward hacking",
    pseudocode A). Meng et al. 2024, PiSSA, arXiv 2404.02948, for the basis.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpenv.isolation import torch_defaults
from hpenv.lm.stored import check_folder, read_tensors, write_tensors

#: Last parts of the names of wrapped modules: the projections of attention and feed-forward in
#: models like Llama.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FORMS = ("additive", "replacement")


class Decomposition(NamedTuple):
    """A weight's thin singular value decomposition, weight = U diag(S) Vh, float32.

    Attributes:
        U: left singular vectors, (out, r).
        S: singular values, (r,), falling.
        Vh: right singular vectors, (r, in).
    """

    U: Tensor
    S: Tensor
    Vh: Tensor


def weight_digest(weight: Tensor) -> str:
    """Returns the sha256 of a weight's dtype, shape and bytes, in hexadecimal."""
    content = weight.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{content.dtype} {tuple(content.shape)}\n".encode())
    digest.update(content.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Returns the sha256 of named weights, in any order. It identifies a direction's weights."""
    lines = [f"{name} {weight_digest(weight)}\n" for name, weight in sorted(weights.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def decompose(weight: Tensor, cache_dir: Path | None = None) -> Decomposition:
    """Computes the singular value decomposition of a weight, in float64, and returns it in float32.

    Args:
        weight: (out, in), finite, of any floating dtype.
        cache_dir: folder of decompositions, created if it is missing. Each file is named by its
            weight's digest, so that a changed weight never gets a stale decomposition. None always
            computes.

    Returns:
        U (out, r), S (r,) and Vh (r, in) on the weight's device. U diag(S) Vh is the weight up to
        float32 rounding.

    Raises:
        ValueError: if the weight is not a finite floating-point matrix, the cached file cannot be
            read, or the folder cannot be written to.
    """
    if weight.ndim != 2 or not weight.is_floating_point() or not weight.numel():
        raise ValueError(
            f"weight must be a matrix of floats; got shape {tuple(weight.shape)}, {weight.dtype}"
        )

    path = None if cache_dir is None else Path(cache_dir) / f"{weight_digest(weight)}.safetensors"
    if path is not None and path.exists():
        return _read_decomposition(path, weight)
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(
            f"weight must be finite; got non-finite entries in shape {tuple(weight.shape)}"
        )

    if path is not None:
        check_folder("cache_dir", path.parent)  # before the minutes that a large weight takes

    result = Decomposition(
        *(t.float() for t in torch.linalg.svd(weight.detach().double(), full_matrices=False))
    )
    if path is not None:
        tensors = result._asdict()
        write_tensors(path, tensors, {"weight": path.stem, "sha256": weights_digest(tensors)})

    return result


def _read_decomposition(path: Path, weight: Tensor) -> Decomposition:
    """Reads the decomposition of a weight. The digest in the header proves the file's contents."""
    tensors, metadata = read_tensors("cache_dir", path)
    out, r, size = weight.shape[0], min(weight.shape), weight.shape[1]
    shapes = {"U": (out, r), "S": (r,), "Vh": (r, size)}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    if given != shapes or metadata != {"weight": path.stem, "sha256": weights_digest(tensors)}:
        raise ValueError(
            f"{path} must hold the decomposition that was written there, tensors {shapes} with the "
            f"digests in its header; got tensors {given}; delete it, and it is computed again"
        )
    return Decomposition(**{name: tensor.to(weight.device) for name, tensor in tensors.items()})


def adapted_weight(weight: Tensor, decomposition: Decomposition, coefficients: Tensor) -> Tensor:
    """Returns the weights of N runs that share one frozen weight: W + U diag(d_n) Vh.

    This is the additive form. A run whose coefficients are 0 has W bit for bit, whatever the others
    have.

    Args:
        weight: (out, in), frozen.
        decomposition: of that weight.
        coefficients: (N, r). The result is differentiable in them.

    Returns:
        (N, out, in).

    Raises:
        ValueError: if there is not one coefficient per singular value.
    """
    if coefficients.ndim != 2 or coefficients.shape[1] != len(decomposition.S):
        raise ValueError(
            f"coefficients must have shape (N, {len(decomposition.S)}); "
            f"got {tuple(coefficients.shape)}"
        )
    adapters = torch.matmul(
        decomposition.U * coefficients[:, None, :], decomposition.Vh
    )  # (N, out, in)
    return weight + adapters


class AntiPaSTOLinear(nn.Module):
    """A frozen `nn.Linear` with a coefficient on each singular value, and optionally a quarantine.

    The quarantine is a second set of coefficients. It is trained on what a projection removes from
    the gradient of the first. It is part of the layer while a run trains. It is
    left out (`quarantine_on` is False) where the model is evaluated or deployed. The gradients of
    both sets are the same. The plant decides what each of them is trained on.

    Args:
        linear: the layer, which is kept and frozen.
        form: `additive` or `replacement`.
        cache_dir: see `decompose`.
        quarantine: True for a second set of coefficients.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor

    def __init__(
        self,
        linear: nn.Linear,
        form: str = "additive",
        cache_dir: Path | None = None,
        quarantine: bool = False,
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise ValueError(
                f"unknown form {form!r} of the adapter; expected one of {sorted(FORMS)}"
            )

        self.linear = linear.requires_grad_(False)
        self.form = form
        U, S, Vh = decompose(linear.weight, cache_dir)
        # Not part of the saved state, since they are functions of the frozen weight. S and the
        # coefficients stay in float32: in bfloat16 an optimizer's small steps would be lost.
        self.register_buffer("U", U.to(linear.weight.dtype), persistent=False)
        self.register_buffer("S", S, persistent=False)
        self.register_buffer("Vh", Vh.to(linear.weight.dtype), persistent=False)
        self.coefficients = nn.Parameter(torch.zeros_like(S))
        self.quarantine = nn.Parameter(torch.zeros_like(S)) if quarantine else None
        self.quarantine_on = quarantine

    def forward(self, x: Tensor) -> Tensor:
        """Computes the layer, (..., in) -> (..., out)."""
        d: Tensor = self.coefficients
        if self.quarantine is not None and self.quarantine_on:
            d = d + self.quarantine

        inner = F.linear(x, self.Vh)  # (..., r)
        if self.form == "additive":
            return self.linear(x) + F.linear(inner * d.to(x.dtype), self.U)
        return F.linear(inner * (self.S + d).to(x.dtype), self.U, self.linear.bias)


def attach(
    model: nn.Module,
    targets: Sequence[str] = TARGETS,
    form: str = "additive",
    cache_dir: Path | None = None,
    quarantine: bool = False,
) -> dict[str, AntiPaSTOLinear]:
    """Wraps a model's target layers in place, and freezes everything but their coefficients.

    Args:
        model: any module without adapters.
        targets: last parts of the names of the `nn.Linear`s to wrap.
        form: `additive` or `replacement`.
        cache_dir: folder for the decompositions, see `decompose`.
        quarantine: True for a second set of coefficients in every layer.

    Returns:
        name of the wrapped layer -> adapter, in the model's order.

    Raises:
        ValueError: if no layer has such a name, the model has adapters, or gradients cannot pass.
    """
    if wrapped := [
        name for name, module in model.named_modules() if isinstance(module, AntiPaSTOLinear)
    ]:
        raise ValueError(
            f"the model must have no adapters; got one at {wrapped[0]!r}; detach it first"
        )

    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    if isinstance(targets, str) or not all(isinstance(target, str) for target in targets):
        raise ValueError(f"targets must be a list of names of layers; got {targets!r}")

    chosen = {name: layer for name, layer in layers.items() if name.rpartition(".")[2] in targets}
    if not chosen:
        ends = sorted({name.rpartition(".")[2] for name in layers})
        raise ValueError(
            f"targets must name an nn.Linear of the model, some of {ends}; got {sorted(targets)}"
        )

    if any(layer.weight.is_inference() for layer in chosen.values()):
        raise ValueError(
            "the model must be made outside torch.inference_mode, or no gradient passes it; got "
            "one that was made under it"
        )

    with torch_defaults():
        adapters = {
            name: AntiPaSTOLinear(layer, form, cache_dir, quarantine)
            for name, layer in chosen.items()
        }

    model.requires_grad_(False)
    for name, adapter in adapters.items():
        _put(model, name, adapter)
    return adapters


def detach(model: nn.Module) -> None:
    """Puts the original layers back. They stay frozen, and the coefficients are lost."""
    for name, module in list(model.named_modules()):
        if isinstance(module, AntiPaSTOLinear):
            _put(model, name, module.linear)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


@contextlib.contextmanager
def ablate_quarantine(adapters: Mapping[str, AntiPaSTOLinear]) -> Iterator[None]:
    """Leaves the quarantine out within the block, as in deployment."""
    before = {name: adapter.quarantine_on for name, adapter in adapters.items()}
    try:
        for adapter in adapters.values():
            adapter.quarantine_on = False
        yield
    finally:
        for name, adapter in adapters.items():
            adapter.quarantine_on = before[name]
