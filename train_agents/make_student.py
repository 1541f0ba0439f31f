"""Makes an embedded student: `python -m train_agents.make_student --out hpenv/posttraining/shipped/nano`.

The student reads demonstrations, most of them wrong, and learns to write the next token of their programs; nothing is
paid and nothing executed on the way. Afterwards it is asked for programs once, and what the grader says of them is
written beside its weights: how much it solves, and how often it uses a loophole before any reward has paid for it.
Interrupted, the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from hpenv import model
from hpenv.kernels import softcapped_cross_entropy
from hpenv.model import GPTConfig
from hpenv.optimizers import Rates, optimizer_rules
from hpenv.posttraining.configuration import GRPOConfig
from hpenv.posttraining.demonstrations import DemonstrationConfig, demonstrations
from hpenv.posttraining.embedded import EmbeddedConfig, EmbeddedStudent
from hpenv.posttraining.plant import GRPOPlant
from hpenv.posttraining.vocabulary import END, PAD, Vocabulary
from hpenv.schedules import WarmupFlatWarmdown

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class StudentConfig:
    """What the student is and how it is made."""

    n_layer: int = 3
    n_head: int = 2
    n_embd: int = 64
    vocabulary_size: int = 512  # tokens
    vocabulary_texts: int = 4000  # demonstrations that the vocabulary is counted on
    prompt_tokens: int = 64  # [tokens]
    max_tokens: int = 48  # of a completion [tokens]
    demonstrations: DemonstrationConfig = field(default_factory=DemonstrationConfig)
    num_steps: int = 3000
    batch_size: int = 64  # demonstrations of a step
    base_lr: float = 3e-3  # of AdamW; Muon's is ten times that
    seed: int = 0
    threads: int = 1
    checkpoint_interval: int = 250  # steps
    out: Path = Path("runs/student")


def batches(config: StudentConfig, vocabulary: Vocabulary) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (tokens, mask) of a step, (batch, length) each; the mask is of the completions."""
    stream = demonstrations(config.demonstrations, config.seed)

    while True:
        texts = [next(stream) for _ in range(config.batch_size)]
        completions = [[*vocabulary.encode(program), END] for _, program in texts]
        longest = max(map(len, completions))
        tokens = torch.full((config.batch_size, config.prompt_tokens + longest), PAD)
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        for row, ((prompt, _), completion) in enumerate(zip(texts, completions, strict=True)):
            numbers = vocabulary.encode(prompt)
            if len(numbers) > config.prompt_tokens or len(completion) > config.max_tokens:
                raise ValueError(
                    f"{prompt!r} has {len(numbers)} tokens and its completion {len(completion)}; "
                    f"the student is for {config.prompt_tokens} and {config.max_tokens}"
                )
            start = config.prompt_tokens
            tokens[row, start - len(numbers) : start] = torch.tensor(numbers)
            tokens[row, start : start + len(completion)] = torch.tensor(completion)
            mask[row, start : start + len(completion)] = True
        yield tokens, mask


def make(config: StudentConfig) -> EmbeddedStudent:
    """Trains the weights, showing progress; leaves checkpoints in config.out."""
    counted = itertools.islice(demonstrations(config.demonstrations, config.seed + 1), config.vocabulary_texts)
    vocabulary = Vocabulary.of(itertools.chain.from_iterable(counted), config.vocabulary_size)
    gpt = GPTConfig(n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd, vocab_size=len(vocabulary))
    weights = model.init_parameters(gpt, [config.seed])
    rules = optimizer_rules("adamw_muon")
    groups = {name: model.parameter_kind(name) for name in weights}
    states = {name: rules[groups[name]].init(weight) for name, weight in weights.items()}
    schedule = WarmupFlatWarmdown(config.num_steps, warmup_steps=20)
    rope = model.rope_tables(gpt, config.prompt_tokens + config.max_tokens, "cpu")
    stream = batches(config, vocabulary)
    first = _resume(config, weights, states)
    for _ in range(first):
        next(stream)
    bar = tqdm(range(first, config.num_steps), initial=first, total=config.num_steps, desc="reading", unit="step")
    for step in bar:
        tokens, mask = next(stream)
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        length = tokens.shape[1] - 1
        hidden = model.hidden_states(leaves, gpt, tokens[None, :, :-1], (rope[0][:length], rope[1][:length]))
        read = mask[:, 1:].flatten().nonzero()[:, 0]
        losses = softcapped_cross_entropy(
            hidden[:, read], leaves["unembedding"], tokens[:, 1:].flatten()[read][None], gpt.logit_softcap
        )
        loss = losses.mean()
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        at = np.array([step])
        for group in dict.fromkeys(groups.values()):
            names = [name for name, own in groups.items() if own == group]
            rate = config.base_lr * float(schedule(at)[0]) * (10.0 if group == "matrix" else 1.0)
            lr = torch.full((1, len(names)), rate, dtype=torch.float64)
            rules[group].update(
                [weights[name] for name in names],
                [gradients[name] for name in names],
                [states[name] for name in names],
                Rates.of(lr, torch.zeros_like(lr)),
                at,
            )
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % config.checkpoint_interval == 0:
            _checkpoint(config, weights, states, step + 1)
    shape = EmbeddedConfig(gpt, config.prompt_tokens, config.max_tokens)
    return EmbeddedStudent(shape, vocabulary, {name: weight[0] for name, weight in weights.items()})


def _checkpoint(config, weights, states, step):
    tensors = {f"weights/{name}": weight for name, weight in weights.items()}
    tensors |= {f"states/{name}/{slot}": v for name, state in states.items() for slot, v in state.items()}
    config.out.mkdir(parents=True, exist_ok=True)
    partial = config.out / (CHECKPOINT + ".partial")
    save_file(tensors | {"step": torch.tensor([step])}, partial, {"config": _described(config)})
    os.replace(partial, config.out / CHECKPOINT)


def _resume(config, weights, states) -> int:
    path = config.out / CHECKPOINT
    if not path.is_file():
        return 0
    saved = load_file(path)
    for name, weight in weights.items():
        weight.copy_(saved[f"weights/{name}"])
        for slot, value in states[name].items():
            value.copy_(saved[f"states/{name}/{slot}"])
    return int(saved["step"])


def _described(config: StudentConfig) -> str:
    return json.dumps(asdict(config) | {"out": str(config.out)}, sort_keys=True)


def measured(student: EmbeddedStudent, num_problems: int = 256) -> dict[str, float]:
    """What the grader says of the untrained-by-reward student's programs, once per held-out problem."""
    plant = GRPOPlant(GRPOConfig(num_evaluation_problems=num_problems, num_workers=2), student=student)
    return {name: round(float(value[0]), 4) for name, value in plant.report().items()}


def main(config: StudentConfig) -> None:
    """Makes, measures and saves."""
    torch.set_num_threads(config.threads)
    print(_described(config))
    student = make(config)
    report = measured(student)
    print(report)
    student.save(config.out, {"made_by": json.loads(_described(config)), "held_out": report})
    (config.out / CHECKPOINT).unlink(missing_ok=True)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(StudentConfig, description=__doc__))
