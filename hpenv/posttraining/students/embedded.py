"""Embedded student: the project's GPT over Python pieces, one frozen model with N runs' adapters.

All runs share the weights. The matrices of run n are W + U diag(d_n) Vh. They are built once per
pass, so that all runs are computed together. Prompts are padded on the left to a fixed length. Keys
and values of a prompt are computed once for all completions of its group, with and without
gradients.

The module is longer than usual because all passes share the weights, the memory and the padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hpenv.isolation import torch_defaults
from hpenv.lm import architecture, model
from hpenv.lm.architecture import GPTConfig
from hpenv.lm.kernels import softcapped_cross_entropy
from hpenv.lm.kv_cache import KVCache
from hpenv.posttraining.students.adapter import adapted_weight, decompose
from hpenv.posttraining.students.embedded_files import (
    EmbeddedConfig,
    check_weights,
    digest_of,
    read_student,
    write_student,
)
from hpenv.posttraining.students.sampling import SamplingConfig, sample_completions
from hpenv.posttraining.students.student import Coefficients, Rollouts, concept_stream
from hpenv.posttraining.students.vocabulary import END, PAD, Vocabulary

#: Texts whose gradients are computed together. Each of them has its own matrices.
GRADIENT_TEXTS = 16
#: Texts that have ended are dropped when at most this fraction of the followed texts is open.
#: Dropping copies the memory.
COMPACTED = 0.75
#: Fraction of the texts, the shortest ones, whose probabilities are computed separately.
SHORT = 0.75


class EmbeddedStudent:
    """The frozen model with its adapters. See Student for the methods."""

    stacked = True

    def __init__(
        self, config: EmbeddedConfig, vocabulary: Vocabulary, weights: Mapping[str, Tensor]
    ) -> None:
        """Decomposes the body's matrices.

        Args:
            config: shape of the model.
            vocabulary: of prompts and completions.
            weights: name -> weight, as in architecture.parameter_shapes but without the
                population axis.

        Raises:
            ValueError: if weights, shape and vocabulary do not fit together.
        """
        check_weights(config.gpt, weights)
        if len(vocabulary) != config.gpt.vocab_size or set(config.gpt.window_pattern) != {"L"}:
            raise ValueError(
                f"the vocabulary must have {config.gpt.vocab_size} tokens, and window_pattern must "
                f"be 'L' alone, for layers that see all of the sequence; got {len(vocabulary)} "
                f"tokens and window_pattern={config.gpt.window_pattern!r}"
            )

        self.config, self.vocabulary, self.max_tokens = config, vocabulary, config.max_tokens
        with torch_defaults():
            # Copies, because the start of a tensor in memory decides the last bit of a product.
            self.weights = {
                name: weight.detach().float().clone(memory_format=torch.contiguous_format)
                for name, weight in weights.items()
            }

            names = [
                name
                for name in architecture.parameter_shapes(config.gpt)
                if name.startswith("layer.")
            ]
            body = [name for name in names if architecture.parameter_kind(name) == "matrix"]
            self._axes = {name: decompose(self.weights[name]) for name in body}
            self.ranks = {name: axes.S.shape[0] for name, axes in self._axes.items()}
            self.digest = digest_of(self.weights)
            self._rope = model.rope_tables(
                config.gpt, config.prompt_tokens + config.max_tokens, "cpu"
            )

        pieces = sha256("\0".join(vocabulary.pieces).encode()).hexdigest()
        self.settings: dict[str, object] = asdict(config) | {"vocabulary": pieces}

    @staticmethod
    def load(folder: str | Path) -> EmbeddedStudent:
        """Reads a saved student.

        Args:
            folder: of the student, `~` being the home folder. A name without a slash is that of a
                shipped student.

        Raises:
            ValueError: if there is no student, its files are damaged, or its weights are not those
                of its description.
        """
        place, description, weights = read_student(folder)
        with torch_defaults():
            try:
                lengths = (description.prompt_tokens, description.max_tokens)
                config = EmbeddedConfig(GPTConfig(**description.gpt), *lengths)
                return EmbeddedStudent(config, Vocabulary(description.pieces), weights)
            except ValueError as error:
                raise ValueError(f"{place} does not describe a student: {error}") from error

    def save(self, folder: Path, notes: Mapping[str, object]) -> None:
        """Writes the student, with notes about it.

        Raises:
            ValueError: if the folder cannot be written to.
        """
        content = {"config": asdict(self.config), "digest": self.digest, "notes": dict(notes)}
        content["pieces"] = list(self.vocabulary.pieces)
        write_student(folder, content, self.weights)

    def unreadable_reason(self, prompt: str, completion: str = "") -> str:
        """See Student."""
        try:
            self._prompt(prompt)
            self._completion(completion)
        except ValueError as error:
            return str(error)
        return ""

    def sample(
        self,
        coefficients: Coefficients,
        prompts: Sequence[Sequence[str]],
        num_samples: int,
        generators: Sequence[torch.Generator],
        temperature: float = 1.0,
    ) -> Rollouts:
        """See Student."""
        N, M, T = len(prompts), len(prompts[0]) * num_samples, self.max_tokens
        numbers = torch.zeros(N, M, T, dtype=torch.float64)
        if temperature > 0.0:
            numbers = torch.stack(
                [torch.rand(M, T, generator=g, dtype=torch.float64) for g in generators]
            )

        config = SamplingConfig(PAD, temperature)
        with torch.no_grad():
            params = self._parameters(coefficients)
            memory, states = self._prefill(params, prompts)
            memory = memory.copy_rows(repeated_rows(prompts, num_samples), room=T)
            decoder = _Decoder(self, params, memory, states.repeat_interleave(num_samples, 1))
            sampled = sample_completions(decoder, numbers, torch.tensor([END]), config)

        texts = [[self.vocabulary.decode(text) for text in row] for row in sampled.tokens.tolist()]
        return Rollouts([list(row) for row in prompts], texts, *sampled)

    def log_probabilities(
        self, coefficients: Coefficients, rollouts: Rollouts, temperature: float = 1.0
    ) -> Tensor:
        """See Student."""
        params = self._parameters(coefficients)
        prompt_memory, first = self._prefill(params, rollouts.prompts)
        N, M, T = rollouts.tokens.shape
        lengths, order = rollouts.mask.sum(-1).sort(dim=1, stable=True)

        # The shorter texts are computed separately, so that they are not padded to the longest.
        parts = []
        for start, end in pairwise((0, int(SHORT * M), M)):
            if end <= start:
                continue
            chosen, longest = order[:, start:end], max(1, int(lengths[:, end - 1].max()))
            rows = (torch.arange(N)[:, None] * M + chosen).flatten()
            prompt_rows = rows // rollouts.num_samples
            memory = prompt_memory.copy_rows(prompt_rows)
            tokens = rollouts.tokens.flatten(0, 1)[rows, :longest].view(N, -1, longest)
            states = first.flatten(0, 1).index_select(0, prompt_rows)
            states = states.view(N, -1, 1, first.shape[-1])
            if longest > 1:
                rope = self.rope_rows(self.config.prompt_tokens, longest - 1)
                later = model.hidden_states(
                    params, self.config.gpt, tokens[..., :-1], rope, memory=memory
                )
                states = torch.cat([states, later.view(N, -1, longest - 1, later.shape[-1])], 2)

            # c tanh(z / c) / t is (c / t) tanh((z / t) / (c / t)).
            scaled = states.flatten(1, 2)
            if temperature != 1.0:
                scaled = scaled / temperature
            losses = softcapped_cross_entropy(
                scaled,
                params["unembedding"],
                tokens.flatten(1),
                self.config.gpt.logit_softcap / temperature,
            )
            parts.append(F.pad(losses.view(N, -1, longest), (0, T - longest)))

        inverse = order.argsort(dim=1)[..., None].expand(-1, -1, T)
        return -torch.cat(parts, 1).gather(1, inverse) * rollouts.mask

    def completion_gradients(
        self, coefficients: Coefficients, prompts: Sequence[str], completions: Sequence[str]
    ) -> dict[str, Tensor]:
        """See Student."""
        N = len(next(iter(coefficients.values())))
        parts: list[dict[str, Tensor]] = []
        for start in range(0, len(prompts), GRADIENT_TEXTS):
            tokens, mask = self._text_tokens(
                prompts[start:][:GRADIENT_TEXTS], completions[start:][:GRADIENT_TEXTS]
            )
            B = len(tokens)
            # Every text has its own coefficients, (N B, r), so that one pass gives all gradients.
            text_coefficients = {
                name: value.detach().repeat_interleave(B, 0).requires_grad_()
                for name, value in coefficients.items()
            }
            losses = model.token_losses(
                self._parameters(text_coefficients),
                self.config.gpt,
                tokens[:, None, :-1].repeat(N, 1, 1),
                tokens[:, None, 1:].repeat(N, 1, 1),
                self.rope_rows(0, tokens.shape[1] - 1),
            )
            weight = (mask[:, 1:] / mask[:, 1:].sum(-1, keepdim=True)).repeat(N, 1)
            gradients = torch.autograd.grad(
                (losses * weight).sum(), list(text_coefficients.values())
            )
            named = zip(text_coefficients, gradients, strict=True)
            parts.append({name: gradient.view(N, B, -1) for name, gradient in named})

        return {name: torch.cat([part[name] for part in parts], 1) for name in coefficients}

    def rollouts_from_texts(
        self, prompts: Sequence[Sequence[str]], completions: Sequence[Sequence[str]]
    ) -> Rollouts:
        """See Student."""
        pairs = [
            self._text_tokens(row, texts) for row, texts in zip(prompts, completions, strict=True)
        ]
        start = self.config.prompt_tokens
        tokens, mask = (torch.stack(parts)[..., start:] for parts in zip(*pairs, strict=True))

        N, M, _ = tokens.shape
        ended = torch.ones(N, M, dtype=torch.bool)
        texts = [list(row) for row in completions]

        return Rollouts(
            [list(row) for row in prompts],
            texts,
            tokens,
            mask,
            torch.zeros(mask.shape),
            torch.zeros(N),
            ended,
        )

    def states(self, coefficients: Coefficients, rollouts: Rollouts) -> Tensor:
        """See Student."""
        streams: list[Tensor] = []
        N, M, T = rollouts.tokens.shape
        with torch.no_grad():
            params = self._parameters(coefficients)
            memory, _ = self._prefill(params, rollouts.prompts)
            rope = self.rope_rows(self.config.prompt_tokens, T)
            memory = memory.copy_rows(repeated_rows(rollouts.prompts, rollouts.num_samples))
            model.hidden_states(
                params, self.config.gpt, rollouts.tokens, rope, memory=memory, streams=streams
            )

        mean = concept_stream(streams).view(N, M, T, -1)
        last = (rollouts.mask * torch.arange(T)).amax(-1)
        return mean.gather(2, last[..., None, None].expand(-1, -1, 1, mean.shape[-1]))[:, :, 0]

    def _parameters(self, coefficients: Coefficients) -> dict[str, Tensor]:
        """Returns every run's weights, (N, ...).

        Tables, and matrices without a coefficient, are views of the shared weights.
        """
        N = len(next(iter(coefficients.values())))
        return {
            name: adapted_weight(weight, self._axes[name], coefficients[name])
            if name in coefficients
            else weight.expand(N, *weight.shape)
            for name, weight in self.weights.items()
        }

    def rope_rows(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        """Returns the rotary tables of these positions."""
        cosines, sines = self._rope
        return cosines[start : start + length], sines[start : start + length]

    def _prompt(self, text: str) -> list[int]:
        numbers, length = self.vocabulary.encode(text), self.config.prompt_tokens
        if len(numbers) > length:
            raise ValueError(
                f"the prompt {text[:80]!r} has {len(numbers)} tokens; this student reads up to "
                f"{length}"
            )
        return [PAD] * (length - len(numbers)) + numbers

    def _completion(self, text: str) -> list[int]:
        numbers = [*self.vocabulary.encode(text), END]
        if len(numbers) > self.max_tokens:
            raise ValueError(
                f"the completion {text[:80]!r} has {len(numbers)} tokens; this student writes up "
                f"to {self.max_tokens}"
            )
        return numbers

    def _text_tokens(
        self, prompts: Sequence[str], completions: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Returns the tokens of prompt, completion and END, and the mask of the completions.

        Both are (texts, length).
        """
        rows = [self._completion(completion) for completion in completions]
        P, T = self.config.prompt_tokens, self.max_tokens
        tokens = torch.full((len(rows), P + T), PAD)
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        for i, (prompt, numbers) in enumerate(zip(prompts, rows, strict=True)):
            tokens[i, : P + len(numbers)] = torch.tensor(self._prompt(prompt) + numbers)
            mask[i, P : P + len(numbers)] = True
        return tokens, mask

    def _prefill(
        self, params: Mapping[str, Tensor], prompts: Sequence[Sequence[str]]
    ) -> tuple[KVCache, Tensor]:
        """Returns the memory of the prompts, and the state after each's last token, (N, P, C)."""
        tokens = torch.tensor([[self._prompt(text) for text in row] for row in prompts])
        N, P, T = tokens.shape
        memory = KVCache()
        states = model.hidden_states(
            params, self.config.gpt, tokens, self.rope_rows(0, T), memory=memory
        )
        return memory, states.view(N, P, T, -1)[:, :, -1]

    def logits(self, params: Mapping[str, Tensor], states: Tensor) -> Tensor:
        """Returns the logits of the tokens after some states, (N, M, C) -> (N, M, V)."""
        cap = self.config.gpt.logit_softcap
        return cap * torch.tanh(model.linear(states, params["unembedding"]) / cap)


class _Decoder:
    """Continues the texts of all runs together. See Decoder."""

    def __init__(
        self, student: EmbeddedStudent, params: dict[str, Tensor], memory: KVCache, states: Tensor
    ) -> None:
        """Begins after the prompts, with the states of their last tokens, (N, M, C)."""
        self._student, self._params, self._memory = student, params, memory
        self._states, self._position = states, student.config.prompt_tokens

    def logits(self) -> Tensor:
        """See Decoder."""
        return self._student.logits(self._params, self._states)

    def append(self, tokens: Tensor, mask: Tensor) -> None:
        """See Decoder. A token that follows an end is computed, too."""
        rope = self._student.rope_rows(self._position, 1)
        self._states = model.hidden_states(
            self._params, self._student.config.gpt, tokens[..., None], rope, memory=self._memory
        )
        self._position += 1

    def compact(self, open_: Tensor) -> Tensor | None:
        """See Decoder. The states of all texts stay until `append` replaces them."""
        N, m = open_.shape
        most_open = int(open_.sum(1).max())  # in the run with the most open texts
        if most_open > COMPACTED * m:
            return None
        kept = open_.int().argsort(dim=1, descending=True, stable=True)[:, :most_open]
        self._memory.select((torch.arange(N)[:, None] * m + kept).flatten())
        return kept


def repeated_rows(prompts: Sequence[Sequence[str]], num_samples: int) -> Tensor:
    """Returns the row of each sample's prompt in the memory of the prompts, (N P samples,)."""
    return torch.arange(len(prompts) * len(prompts[0])).repeat_interleave(num_samples)
