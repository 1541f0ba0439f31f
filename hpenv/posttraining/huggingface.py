"""The Hugging Face student: a causal language model of `transformers` with an adapter in its linear
layers.

The model is frozen and shared by all runs; a run's knobs are put in their places for the length of
one pass, so runs are computed one after the other, each exactly as if it were alone. Prompts and
completions are those of the tasks, comments and programs; `answers` has how they are told to a
model. Tested with models of Llama's and Qwen3's kind.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hpenv.isolation import torch_defaults
from hpenv.posttraining.adapter import FORMS, TARGETS, attach, weights_digest
from hpenv.posttraining.answers import MESSAGE, Answers, end_tokens
from hpenv.posttraining.draws import Drawing, Draws, draw_completions
from hpenv.posttraining.huggingface_files import read_model
from hpenv.posttraining.reading import (
    Prompts,
    RowKnobs,
    concept_states,
    continued,
    log_probabilities,
    read,
)
from hpenv.posttraining.student import Knobs, Rollouts

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class HuggingFaceConfig:
    """How a model is loaded, adapted and sampled from.

    Sampling that the model's generation_config asks for (top_k, top_p, temperature) is not read.
    """

    max_tokens: int = 64  # longest completion, its end included [tokens]
    top_k: int = 0  # only this many of the likeliest tokens are drawn; 0: all (the paper: 20)
    top_p: float = 1.0  # only the fewest tokens that together are this likely are drawn, in (0, 1]
    message: str = MESSAGE  # of the user, where the tokenizer has a chat template; empty: the template is not used
    form: str = "additive"  # of the adapter, or `replacement`, which saves a third of the products
    targets: tuple[str, ...] = TARGETS  # last parts of the names of the layers that get an adapter
    texts_per_pass: int = 16  # completions computed together with gradients: memory against speed
    cache_dir: str | Path | None = (
        None  # folder of decompositions; without one a large model takes minutes at every start
    )
    dtype: str = "float32"  # of the frozen weights, or `bfloat16`; the knobs are float32
    device: str = "cpu"  # of the model; knobs and rollouts stay where they are

    def __post_init__(self) -> None:
        """Refuses what cannot be run."""
        for name, least in (("max_tokens", 1), ("top_k", 0), ("texts_per_pass", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}={value!r}; expected a whole number of at least {least}")
        if not isinstance(self.top_p, int | float) or not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p={self.top_p!r}; expected a number above 0 and at most 1")
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
            raise ValueError(f"targets must be a tuple of names of layers; got {self.targets!r}")
        if not isinstance(self.cache_dir, str | os.PathLike | None):
            raise ValueError(f"cache_dir must be a folder or None; got {self.cache_dir!r}")
        try:
            torch.zeros(1, device=self.device).tolist()
        except (
            RuntimeError,
            AssertionError,
            TypeError,
            NotImplementedError,
        ) as error:  # torch raises any of them
            raise ValueError(
                f"device must be one that torch has here; got {self.device!r} ({error})"
            ) from error


class HuggingFaceStudent:
    """A frozen causal language model with an adapter in its linear layers; see Student for the
    methods.

    Attributes:
        model: with the adapters attached, frozen but for its own knobs, which stay at 0 here.
        tokenizer: of the model.
        config: as given.
    """

    stacked = False

    def __init__(
        self, model: nn.Module, tokenizer: Any, config: HuggingFaceConfig | None = None
    ) -> None:
        """Attaches the adapters to the model, in place.

        Args:
            model: a causal language model of `transformers`.
            tokenizer: its tokenizer; it has an end-of-text token.
            config: how it is adapted and sampled from; None for the defaults.

        Raises:
            ValueError: if weights are not finite, tokens do not fit, or there is nothing to attach
                an adapter to.
        """
        self.config = config = config or HuggingFaceConfig()
        ends = end_tokens(model, tokenizer)
        self._num_tokens = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
        for name, number in (*(("end", end) for end in ends), ("pad", tokenizer.pad_token_id)):
            if number is not None and not 0 <= number < self._num_tokens:
                raise ValueError(
                    f"the {name} token has the number {number}, and the model reads {self._num_tokens} tokens; "
                    "expected a tokenizer and a generation_config that were saved with the model"
                )
        for name, weight in model.named_parameters():
            if not bool(weight.isfinite().all()):
                raise ValueError(
                    f"the weight {name!r} has numbers that are not finite; expected finite ones"
                )
        cache_dir = None if config.cache_dir is None else Path(os.path.expanduser(config.cache_dir))
        self.digest = weights_digest(dict(model.named_parameters()))
        adapters = attach(model, config.targets, config.form, cache_dir)
        self.ranks = {name: len(adapter.S) for name, adapter in adapters.items()}
        self.model, self.tokenizer, self.max_tokens = model.eval(), tokenizer, config.max_tokens
        self._device = next(model.parameters()).device
        self._ends = torch.tensor(ends, device=self._device)
        self._answers = Answers(tokenizer, ends[0], config.message)
        self.settings: dict[str, object] = _settings(model, tokenizer, config) | {"ends": ends}

    @staticmethod
    def load(
        folder: str | Path, gguf_file: str | None = None, config: HuggingFaceConfig | None = None
    ) -> HuggingFaceStudent:
        """A model from a folder on this machine; nothing is downloaded.

        Args:
            folder: with `config.json`, weights and tokenizer, as `save_pretrained` and `hf
                download` leave them.
            gguf_file: name of a GGUF file in the folder, which then needs nothing else.
            config: see HuggingFaceConfig.

        Raises:
            ModuleNotFoundError: without `transformers`.
            ValueError: if no whole model with its tokenizer is there.
        """
        config = config or HuggingFaceConfig()
        with torch_defaults():
            model, tokenizer = read_model(folder, gguf_file, DTYPES[config.dtype])
            return HuggingFaceStudent(model.to(config.device), tokenizer, config)

    def refusal(self, prompt: str, completion: str = "") -> str:
        """See Student."""
        most = getattr(self.model.config, "max_position_embeddings", None)
        tokens, answer = (
            self._answers.prompts([prompt])[0],
            self._answers.completions([completion])[0],
        )
        if (largest := max(int(tokens.max()), int(answer.max()))) >= self._num_tokens:
            return f"token {largest} of {prompt[:80]!r} or its completion; this student knows {self._num_tokens} tokens"
        length = tokens.shape[1] + self.max_tokens
        if most is None or length <= most:
            return ""
        return f"the prompt {prompt[:80]!r} and {self.max_tokens} tokens after it are {length}; this student reads {most}"

    @torch.no_grad()
    def sample(
        self,
        knobs: Knobs,
        prompts: Sequence[Sequence[str]],
        num_samples: int,
        generators: Sequence[torch.Generator],
        temperature: float = 1.0,
    ) -> Rollouts:
        """See Student; `logp` and `entropy` are of the whole distribution at temperature 1."""
        home = next(iter(knobs.values())).device
        rows = [
            self._sampled(self._row(knobs, n), own, num_samples, generators[n], temperature)
            for n, own in enumerate(prompts)
        ]
        T, pad = max(row.tokens.shape[1] for row in rows), self._answers.pad
        tokens = _stacked([row.tokens for row in rows], T, pad).to(home)
        mask = _stacked([row.mask for row in rows], T, False).to(home)
        texts = [
            [self._answers.program(own[seen].tolist()) for own, seen in zip(*row, strict=True)]
            for row in zip(tokens, mask, strict=True)
        ]
        return Rollouts(
            [list(own) for own in prompts],
            texts,
            tokens,
            mask,
            _stacked([row.logp for row in rows], T, 0.0).to(home),
            torch.stack([row.entropy for row in rows]).to(home),
            torch.stack([row.ended for row in rows]).to(home),
        )

    def log_probabilities(
        self, knobs: Knobs, rollouts: Rollouts, temperature: float = 1.0
    ) -> Tensor:
        """See Student; with top_k and top_p of the tokens that are kept.

        Of several passes each is computed again on the way back, so that one is held at a time.
        """
        T, G, rows = rollouts.tokens.shape[2], rollouts.num_samples, []
        several = len(rollouts.prompts) > 1 or len(rollouts.prompts[0]) > self._prompts_per_pass(G)
        for n in range(len(rollouts.prompts)):
            own, length, parts = self._row(knobs, n), int(rollouts.mask[n].any(0).sum()), []
            for prompts, tokens, mask in self._passes(rollouts, n):
                shape = (temperature, self.config.top_k, self.config.top_p)
                arguments = (own, prompts, tokens[:, :length], mask[:, :length], G, *shape)
                if torch.is_grad_enabled() and several:
                    parts.append(
                        checkpoint(
                            self._logp, *arguments, use_reentrant=False, preserve_rng_state=False
                        )
                    )
                else:
                    parts.append(self._logp(*arguments))
            rows.append(torch.cat(parts).to(rollouts.tokens.device))
        return _stacked(rows, T, 0.0).masked_fill(~rollouts.mask, 0.0)

    def completion_gradients(
        self, knobs: Knobs, prompts: Sequence[str], completions: Sequence[str]
    ) -> dict[str, Tensor]:
        """See Student."""
        rows, step = [], self._prompts_per_pass(1)
        for n in range(len(next(iter(knobs.values())))):
            parts: list[tuple[Tensor, ...]] = []
            for first in range(0, len(prompts), step):
                chosen = slice(first, first + step)
                tokens, mask = (
                    part.to(self._device) for part in self._answers.completions(completions[chosen])
                )
                # Every text has knobs of its own, so that one pass gives all gradients.
                own = {
                    name: knob.detach().expand(len(tokens), 1, -1).clone().requires_grad_()
                    for name, knob in self._row(knobs, n).items()
                }
                logp = self._logp(own, prompts[chosen], tokens, mask, 1)
                losses = -logp.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)
                parts.append(torch.autograd.grad(losses.sum(), list(own.values())))
            rows.append([torch.cat(pieces)[:, 0] for pieces in zip(*parts, strict=True)])
        return {
            name: torch.stack([row[i] for row in rows]).to(knob.device)
            for i, (name, knob) in enumerate(knobs.items())
        }

    def given(
        self, prompts: Sequence[Sequence[str]], completions: Sequence[Sequence[str]]
    ) -> Rollouts:
        """See Student; here a text may be longer than `max_tokens`."""
        tokens, mask = self._answers.completions([text for own in completions for text in own])
        shape = (len(completions), len(completions[0]), -1)
        return Rollouts(
            [list(own) for own in prompts],
            [list(own) for own in completions],
            tokens.view(shape),
            mask.view(shape),
            torch.zeros(mask.view(shape).shape),
            torch.zeros(len(completions)),
            torch.ones(shape[:2], dtype=torch.bool),
        )

    @torch.no_grad()
    def states(self, knobs: Knobs, rollouts: Rollouts) -> Tensor:
        """See Student."""
        rows = []
        for n in range(len(rollouts.prompts)):
            own, parts = self._row(knobs, n), []
            for texts, tokens, mask in self._passes(rollouts, n):
                prompts = self._read(own, texts, rollouts.num_samples)
                parts.append(concept_states(self.model, own, prompts, tokens, mask))
            rows.append(torch.cat(parts))
        return torch.stack(rows).to(rollouts.tokens.device)

    def _row(self, knobs: Knobs, n: int) -> dict[str, Tensor]:
        """The knobs of one run, where the model is."""
        if set(knobs) != set(self.ranks):
            raise ValueError(f"got knobs of {sorted(knobs)}; expected {sorted(self.ranks)}")
        return {name: knob[n].to(self._device) for name, knob in knobs.items()}

    def _prompts_per_pass(self, num_samples: int) -> int:
        """How many prompts are computed together: whole groups, at least one."""
        return max(1, self.config.texts_per_pass // num_samples)

    def _passes(self, rollouts: Rollouts, n: int) -> Iterator[tuple[Sequence[str], Tensor, Tensor]]:
        """A run's prompts, and the tokens and mask of their completions, (B, T), where the model is."""
        G, step = rollouts.num_samples, self._prompts_per_pass(rollouts.num_samples)
        for first in range(0, len(rollouts.prompts[n]), step):
            texts = slice(first * G, (first + step) * G)
            tokens, mask = (
                part[n, texts].to(self._device) for part in (rollouts.tokens, rollouts.mask)
            )
            yield rollouts.prompts[n][first : first + step], tokens, mask

    def _read(self, knobs: RowKnobs, prompts: Sequence[str], num_samples: int) -> Prompts:
        tokens, seen = (part.to(self._device) for part in self._answers.prompts(prompts))
        return read(self.model, knobs, tokens, seen, num_samples)

    def _logp(
        self,
        knobs: RowKnobs,
        prompts: Sequence[str],
        tokens: Tensor,
        mask: Tensor,
        num_samples: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Tensor:
        texts = self._read(knobs, prompts, num_samples)
        return log_probabilities(self.model, knobs, texts, tokens, mask, temperature, top_k, top_p)

    def _sampled(
        self,
        knobs: RowKnobs,
        prompts: Sequence[str],
        num_samples: int,
        generator: torch.Generator,
        heat: float,
    ) -> Draws:
        """One run's completions."""
        texts = self._read(knobs, prompts, num_samples)

        def following(tokens: Tensor, mask: Tensor) -> Tensor:
            nonlocal texts
            _, texts = continued(self.model, knobs, texts, tokens, mask)
            return texts.logits[:, 0]

        drawing = Drawing(
            self.max_tokens, self._answers.pad, heat, self.config.top_k, self.config.top_p
        )
        return draw_completions(texts.logits[:, 0], following, self._ends, generator, drawing)


def _settings(model: Any, tokenizer: Any, config: HuggingFaceConfig) -> dict[str, object]:
    """What decides a completion beside the weights, as JSON-able values; what changes the speed alone is left out."""
    speed, origin = ("texts_per_pass", "cache_dir"), ("_name_or_path", "transformers_version")
    settings = {name: value for name, value in vars(config).items() if name not in speed}
    shape = {name: value for name, value in model.config.to_dict().items() if name not in origin}
    words = [
        sorted(tokenizer.get_vocab().items()),
        str(tokenizer.chat_template),
        str(tokenizer.special_tokens_map),
    ]
    for name, value in (("model", shape), ("tokenizer", words)):
        settings[name] = sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
    return settings | {"targets": list(config.targets)}


def _stacked(rows: Sequence[Tensor], T: int, fill: float) -> Tensor:
    """Rows of (B, any length) as one, (N, B, T)."""
    return torch.stack([F.pad(row, (0, T - row.shape[1]), value=fill) for row in rows])
