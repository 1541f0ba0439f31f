"""Hugging Face student: a causal language model of `transformers` with adapters.

The model is frozen, and all runs share it. Its linear layers have adapters. The coefficients of a
run replace the model's for one pass. So runs are computed one after the other, each exactly as if
it were alone. Prompts and completions are the comments and programs of the tasks. `answers`
converts them to the format of the model. Tested with models of the Llama and Qwen3 families.

The module is one class, and longer than usual for that reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hpenv.isolation import torch_defaults
from hpenv.posttraining.students.adapter import FORMS, TARGETS, attach, weights_digest
from hpenv.posttraining.students.chat_format import MESSAGE, ChatFormat, end_tokens
from hpenv.posttraining.students.huggingface_files import model_settings, read_model
from hpenv.posttraining.students.reading import (
    Prompts,
    RowCoefficients,
    RunDecoder,
    concept_states,
    log_probabilities,
    prefill,
)
from hpenv.posttraining.students.sampling import SampledTokens, SamplingConfig, sample_completions
from hpenv.posttraining.students.student import Coefficients, Rollouts

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class HuggingFaceConfig:
    """Configuration of loading a model, its adapters and its sampling.

    The sampling settings of the model's generation_config (top_k, top_p, temperature) are not read.
    """

    max_tokens: int = 64  # longest completion, its end included [tokens]
    top_k: int = 0  # only this many of the likeliest tokens are sampled, 0 for all (the paper: 20)
    # only the fewest tokens that together are this likely are sampled, in (0, 1]
    top_p: float = 1.0
    # of the user, where the tokenizer has a chat template. If empty, the template is not used.
    message: str = MESSAGE
    form: str = "additive"  # of the adapter, or `replacement`, which saves a third of the products
    targets: tuple[str, ...] = TARGETS  # last parts of the names of the layers that get an adapter
    texts_per_pass: int = 16  # completions computed together with gradients: memory against speed
    # folder of decompositions. Without one a large model takes minutes at every start.
    cache_dir: str | Path | None = None
    dtype: str = "float32"  # of the frozen weights, or `bfloat16` (coefficients are float32)
    device: str = "cpu"  # of the model (coefficients and rollouts stay where they are)

    def __post_init__(self) -> None:
        """Checks the values."""
        for name, least in (("max_tokens", 1), ("top_k", 0), ("texts_per_pass", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be an integer >= {least}; got {value!r}")

        if not isinstance(self.top_p, int | float) or not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be a number in (0, 1]; got {self.top_p!r}")
        if not isinstance(self.dtype, str) or self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}; expected one of {sorted(DTYPES)}")
        if not isinstance(self.form, str) or self.form not in FORMS:
            raise ValueError(
                f"unknown form {self.form!r} of the adapter; expected one of {sorted(FORMS)}"
            )

        if not isinstance(self.message, str):
            raise ValueError(f"message must be text; got {self.message!r}")
        if not (
            isinstance(self.targets, tuple | list)
            and all(isinstance(target, str) for target in self.targets)
        ):
            raise ValueError(f"targets must be a tuple of layer names; got {self.targets!r}")
        if not isinstance(self.cache_dir, str | os.PathLike | None):
            raise ValueError(f"cache_dir must be a folder or None; got {self.cache_dir!r}")

        try:
            torch.zeros(1, device=self.device).tolist()
        # torch raises any of these.
        except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
            raise ValueError(
                f"device must be one that torch has here; got {self.device!r} ({error})"
            ) from error


class HuggingFaceStudent:
    """A frozen causal language model with adapters. See Student for the methods.

    Attributes:
        model: the model with adapters. Only the coefficients are not frozen, and stay at 0 here.
        tokenizer: of the model.
        config: configuration of the student.
    """

    stacked = False

    def __init__(
        self, model: nn.Module, tokenizer: Any, config: HuggingFaceConfig | None = None
    ) -> None:
        """Attaches the adapters to the model, in place.

        Args:
            model: a causal language model of `transformers`.
            tokenizer: of the model, with an end-of-text token.
            config: configuration of adapters and sampling. None for the defaults.

        Raises:
            ValueError: if weights are not finite, the tokenizer does not fit, or there is no layer
                for an adapter.
        """
        self.config = config = config or HuggingFaceConfig()
        ends = end_tokens(model, tokenizer)
        self._num_tokens = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]

        for name, number in (*(("end", end) for end in ends), ("pad", tokenizer.pad_token_id)):
            if number is not None and not 0 <= number < self._num_tokens:
                raise ValueError(
                    f"the {name} token must be one of the model's {self._num_tokens} tokens; got "
                    f"number {number}; use a tokenizer and a generation_config that were saved "
                    "with the model"
                )

        for name, weight in model.named_parameters():
            if not bool(weight.isfinite().all()):
                raise ValueError(
                    f"the weight {name!r} must be finite; got numbers that are not finite"
                )

        cache_dir = None if config.cache_dir is None else Path(os.path.expanduser(config.cache_dir))
        self.digest = weights_digest(dict(model.named_parameters()))
        adapters = attach(model, config.targets, config.form, cache_dir)
        self.ranks = {name: len(adapter.S) for name, adapter in adapters.items()}

        self.model, self.tokenizer, self.max_tokens = model.eval(), tokenizer, config.max_tokens
        self._device = next(model.parameters()).device
        self._ends = torch.tensor(ends, device=self._device)
        self._format = ChatFormat(tokenizer, ends[0], config.message)
        self.settings: dict[str, object] = model_settings(model, tokenizer, vars(config)) | {
            "ends": ends
        }

    @staticmethod
    def load(
        folder: str | Path, gguf_file: str | None = None, config: HuggingFaceConfig | None = None
    ) -> HuggingFaceStudent:
        """Loads a model from a folder on this machine. Nothing is downloaded.

        Args:
            folder: with `config.json`, weights and tokenizer, as `save_pretrained` and `hf
                download` leave them.
            gguf_file: name of a GGUF file in the folder, which needs no other file.
            config: configuration of the student. None for the defaults.

        Raises:
            ModuleNotFoundError: without `transformers`.
            ValueError: if the folder does not hold a whole model with its tokenizer.
        """
        config = config or HuggingFaceConfig()
        with torch_defaults():
            model, tokenizer = read_model(folder, gguf_file, DTYPES[config.dtype])
            return HuggingFaceStudent(model.to(config.device), tokenizer, config)

    def unreadable_reason(self, prompt: str, completion: str = "") -> str:
        """See Student."""
        most = getattr(self.model.config, "max_position_embeddings", None)
        tokens = self._format.prompts([prompt])[0]
        answer = self._format.completions([completion])[0]

        largest = max(int(tokens.max()), int(answer.max()))
        if largest >= self._num_tokens:
            return (
                f"token {largest} of {prompt[:80]!r} or its completion; this student knows "
                f"{self._num_tokens} tokens"
            )

        length = tokens.shape[1] + self.max_tokens
        if most is None or length <= most:
            return ""

        return (
            f"the prompt {prompt[:80]!r} and {self.max_tokens} tokens after it are {length}; this "
            f"student reads {most}"
        )

    @torch.no_grad()
    def sample(
        self,
        coefficients: Coefficients,
        prompts: Sequence[Sequence[str]],
        num_samples: int,
        generators: Sequence[torch.Generator],
        temperature: float = 1.0,
    ) -> Rollouts:
        """See Student. `logp` and `entropy` are of the whole distribution at temperature 1."""
        home = next(iter(coefficients.values())).device
        rows = [
            self._sample_run(
                self._run_coefficients(coefficients, n),
                texts,
                num_samples,
                generators[n],
                temperature,
            )
            for n, texts in enumerate(prompts)
        ]

        T, pad = max(row.tokens.shape[2] for row in rows), self._format.pad
        tokens = _stack([row.tokens[0] for row in rows], T, pad).to(home)
        mask = _stack([row.mask[0] for row in rows], T, False).to(home)

        programs = []
        for run_tokens, run_mask in zip(tokens, mask, strict=True):
            texts = zip(run_tokens, run_mask, strict=True)
            programs.append(
                [self._format.program(text[is_text].tolist()) for text, is_text in texts]
            )

        return Rollouts(
            [list(texts) for texts in prompts],
            programs,
            tokens,
            mask,
            _stack([row.logp[0] for row in rows], T, 0.0).to(home),
            torch.cat([row.entropy for row in rows]).to(home),
            torch.cat([row.ended for row in rows]).to(home),
        )

    def log_probabilities(
        self, coefficients: Coefficients, rollouts: Rollouts, temperature: float = 1.0
    ) -> Tensor:
        """See Student. With top_k and top_p the distribution is over the tokens that are kept.

        If there are several passes, each is recomputed in the backward pass, so that only one is
        in memory at a time.
        """
        T, G, rows = rollouts.tokens.shape[2], rollouts.num_samples, []
        several = len(rollouts.prompts) > 1 or len(rollouts.prompts[0]) > self._prompts_per_pass(G)
        sampling = (temperature, self.config.top_k, self.config.top_p)

        for n in range(len(rollouts.prompts)):
            row, length, parts = (
                self._run_coefficients(coefficients, n),
                int(rollouts.mask[n].any(0).sum()),
                [],
            )
            for prompts, tokens, mask in self._passes(rollouts, n):
                arguments = (row, prompts, tokens[:, :length], mask[:, :length], G, *sampling)
                if torch.is_grad_enabled() and several:
                    logp = checkpoint(
                        self._logp, *arguments, use_reentrant=False, preserve_rng_state=False
                    )
                    parts.append(logp)
                else:
                    parts.append(self._logp(*arguments))
            rows.append(torch.cat(parts).to(rollouts.tokens.device))

        return _stack(rows, T, 0.0).masked_fill(~rollouts.mask, 0.0)

    def completion_gradients(
        self, coefficients: Coefficients, prompts: Sequence[str], completions: Sequence[str]
    ) -> dict[str, Tensor]:
        """See Student."""
        rows, step = [], self._prompts_per_pass(1)
        for n in range(len(next(iter(coefficients.values())))):
            parts: list[tuple[Tensor, ...]] = []
            for first in range(0, len(prompts), step):
                chosen = slice(first, first + step)
                tokens, mask = (
                    part.to(self._device) for part in self._format.completions(completions[chosen])
                )
                # Every text has its own coefficients, so that one pass gives all gradients.
                text_coefficients = {
                    name: value.detach().expand(len(tokens), 1, -1).clone().requires_grad_()
                    for name, value in self._run_coefficients(coefficients, n).items()
                }
                logp = self._logp(text_coefficients, prompts[chosen], tokens, mask, 1)
                losses = -logp.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)
                parts.append(torch.autograd.grad(losses.sum(), list(text_coefficients.values())))

            rows.append([torch.cat(pieces)[:, 0] for pieces in zip(*parts, strict=True)])

        return {
            name: torch.stack([row[i] for row in rows]).to(value.device)
            for i, (name, value) in enumerate(coefficients.items())
        }

    def rollouts_from_texts(
        self, prompts: Sequence[Sequence[str]], completions: Sequence[Sequence[str]]
    ) -> Rollouts:
        """See Student. Here a text may be longer than `max_tokens`."""
        tokens, mask = self._format.completions(list(chain.from_iterable(completions)))
        shape = (len(completions), len(completions[0]), -1)
        return Rollouts(
            [list(texts) for texts in prompts],
            [list(texts) for texts in completions],
            tokens.view(shape),
            mask.view(shape),
            torch.zeros(mask.view(shape).shape),
            torch.zeros(len(completions)),
            torch.ones(shape[:2], dtype=torch.bool),
        )

    @torch.no_grad()
    def states(self, coefficients: Coefficients, rollouts: Rollouts) -> Tensor:
        """See Student."""
        rows = []
        for n in range(len(rollouts.prompts)):
            row, parts = self._run_coefficients(coefficients, n), []
            for texts, tokens, mask in self._passes(rollouts, n):
                prompts = self._prefill(row, texts, rollouts.num_samples)
                parts.append(concept_states(self.model, row, prompts, tokens, mask))
            rows.append(torch.cat(parts))
        return torch.stack(rows).to(rollouts.tokens.device)

    def _run_coefficients(self, coefficients: Coefficients, n: int) -> dict[str, Tensor]:
        """Returns the coefficients of one run, on the model's device."""
        if set(coefficients) != set(self.ranks):
            raise ValueError(
                f"coefficients must have the modules {sorted(self.ranks)}; "
                f"got {sorted(coefficients)}"
            )
        return {name: value[n].to(self._device) for name, value in coefficients.items()}

    def _prompts_per_pass(self, num_samples: int) -> int:
        """Returns the number of prompts computed together: whole groups, at least one."""
        return max(1, self.config.texts_per_pass // num_samples)

    def _passes(self, rollouts: Rollouts, n: int) -> Iterator[tuple[Sequence[str], Tensor, Tensor]]:
        """Yields prompts of a run, and tokens and mask of their completions, (B, T).

        Tokens and mask are on the model's device.
        """
        G, step = rollouts.num_samples, self._prompts_per_pass(rollouts.num_samples)
        for first in range(0, len(rollouts.prompts[n]), step):
            texts = slice(first * G, (first + step) * G)
            tokens, mask = (
                part[n, texts].to(self._device) for part in (rollouts.tokens, rollouts.mask)
            )
            yield rollouts.prompts[n][first : first + step], tokens, mask

    def _prefill(
        self, coefficients: RowCoefficients, prompts: Sequence[str], num_samples: int
    ) -> Prompts:
        tokens, mask = (part.to(self._device) for part in self._format.prompts(prompts))
        return prefill(self.model, coefficients, tokens, mask, num_samples)

    def _logp(
        self,
        coefficients: RowCoefficients,
        prompts: Sequence[str],
        tokens: Tensor,
        mask: Tensor,
        num_samples: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Tensor:
        texts = self._prefill(coefficients, prompts, num_samples)
        return log_probabilities(
            self.model, coefficients, texts, tokens, mask, temperature, top_k, top_p
        )

    def _sample_run(
        self,
        coefficients: RowCoefficients,
        prompts: Sequence[str],
        num_samples: int,
        generator: torch.Generator,
        temperature: float,
    ) -> SampledTokens:
        """Samples one run's completions, N = 1."""
        texts = self._prefill(coefficients, prompts, num_samples)
        # The generator gives a number for every text, then for every text's next token.
        size = (self.max_tokens, len(texts.logits))
        numbers = torch.rand(size, generator=generator, dtype=torch.float64).T[None]
        top_k, top_p = self.config.top_k, self.config.top_p
        config = SamplingConfig(self._format.pad, temperature, top_k, top_p)
        decoder = RunDecoder(self.model, coefficients, texts)
        return sample_completions(decoder, numbers, self._ends, config)


def _stack(rows: Sequence[Tensor], T: int, fill: float) -> Tensor:
    """Pads rows of (B, any length) to length T, and stacks them, (N, B, T)."""
    return torch.stack([F.pad(row, (0, T - row.shape[1]), value=fill) for row in rows])
