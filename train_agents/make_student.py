"""Makes an embedded student: `python -m train_agents.make_student --out
hpenv/posttraining/shipped/nano`.

The student reads demonstrations, most of them wrong, and learns to write the next token of their
programs; nothing is paid and nothing executed on the way. Afterwards it is asked for programs once,
and what the grader says of them is written beside its weights: how much it solves, and how often it
uses a loophole before any reward has paid for it. Interrupted, the same command goes on from the
last checkpoint. A folder with a checkpoint or a student of another configuration is refused.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
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
from hpenv.posttraining.pairs import PAIRS
from hpenv.posttraining.plant import GRPOPlant
from hpenv.posttraining.vocabulary import END, PAD, Vocabulary
from hpenv.schedules import WarmupFlatWarmdown
from train_agents.command_line import check_counts, configuration, refusals
from train_agents.facts import environment_facts
from train_agents.outputs import CONFIG, check_folder

CHECKPOINT = "checkpoint.safetensors"
#: Fields of the configuration that may change when the making is continued.
MAY_CHANGE = ("out", "threads", "checkpoint_interval")


@dataclass(frozen=True)
class StudentConfig:
    """What the student is and how it is made."""

    n_layer: int = 3
    n_head: int = 2
    n_embd: int = 64
    vocabulary_size: int = 512  # tokens
    vocabulary_texts: int = 4000  # demonstrations that the vocabulary is counted on
    prompt_tokens: int = 64  # [tokens]
    max_tokens: int = 52  # of a completion [tokens]; the longest demonstration has 51
    demonstrations: DemonstrationConfig = field(default_factory=DemonstrationConfig)
    num_steps: int = 3000
    batch_size: int = 64  # demonstrations of a step
    base_lr: float = 3e-3  # of AdamW; Muon's is ten times that
    seed: int = 0
    threads: int = 1
    checkpoint_interval: int = 250  # steps
    out: Path = Path("runs/student")

    def __post_init__(self) -> None:
        """Refuses sizes below 1, and a rate that is not positive."""
        sizes = (
            "n_layer",
            "n_head",
            "n_embd",
            "vocabulary_size",
            "vocabulary_texts",
            "prompt_tokens",
            "max_tokens",
        )
        check_counts(self, *sizes, "num_steps", "batch_size", "threads", "checkpoint_interval")
        check_counts(self, "seed", least=0)
        if not self.base_lr > 0:
            raise ValueError(f"base_lr must be positive; got {self.base_lr}")


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
            _check_lengths(config, prompt, numbers, completion)
            start = config.prompt_tokens
            tokens[row, start - len(numbers) : start] = torch.tensor(numbers)
            tokens[row, start : start + len(completion)] = torch.tensor(completion)
            mask[row, start : start + len(completion)] = True
        yield tokens, mask


def _check_lengths(
    config: StudentConfig, prompt: str, numbers: Sequence[int], completion: Sequence[int]
) -> None:
    if len(numbers) > config.prompt_tokens or len(completion) > config.max_tokens:
        raise ValueError(
            f"prompt_tokens and max_tokens must be at least {len(numbers)} and {len(completion)}, of the demonstration "
            f"{prompt!r}; got {config.prompt_tokens} and {config.max_tokens}"
        )


def begin(config: StudentConfig) -> tuple[GPTConfig, Vocabulary]:
    """Returns shape and vocabulary of a student whose configuration and folder have been found
    good.

    Raises:
        ValueError: the sizes do not fit each other or the demonstrations, or the folder holds
            another student.
    """
    _check_out(config)
    counted = itertools.islice(
        demonstrations(config.demonstrations, config.seed + 1), config.vocabulary_texts
    )
    # The pairs' words have tokens, or a few rare ones would be spelled; the pairs themselves are
    # never read.
    words = (text for pair in PAIRS for text in (pair.prompt, pair.hack, pair.clean))
    vocabulary = Vocabulary.of(
        itertools.chain(itertools.chain.from_iterable(counted), words), config.vocabulary_size
    )
    gpt = GPTConfig(
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.n_embd,
        vocab_size=len(vocabulary),
    )
    # Of the texts that will be read, as many: one that is too long would end the making when its
    # turn comes.
    for prompt, program in itertools.islice(
        demonstrations(config.demonstrations, config.seed), config.vocabulary_texts
    ):
        _check_lengths(
            config, prompt, vocabulary.encode(prompt), [*vocabulary.encode(program), END]
        )
    return gpt, vocabulary


def make(config: StudentConfig, gpt: GPTConfig, vocabulary: Vocabulary) -> EmbeddedStudent:
    """Trains the weights, showing progress; leaves checkpoints in config.out."""
    weights = model.init_parameters(gpt, [config.seed])
    rules = optimizer_rules("adamw_muon")
    groups = {name: model.parameter_kind(name) for name in weights}
    states = {name: rules[groups[name]].init(weight) for name, weight in weights.items()}
    schedule = WarmupFlatWarmdown(config.num_steps, warmup_steps=min(20, config.num_steps))
    rope = model.rope_tables(gpt, config.prompt_tokens + config.max_tokens, "cpu")
    stream = batches(config, vocabulary)
    first = _resume(config, weights, states)
    for _ in range(first):
        next(stream)
    bar = tqdm(
        range(first, config.num_steps),
        initial=first,
        total=config.num_steps,
        desc="reading",
        unit="step",
    )
    for step in bar:
        tokens, mask = next(stream)
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        length = tokens.shape[1] - 1
        hidden = model.hidden_states(
            leaves, gpt, tokens[None, :, :-1], (rope[0][:length], rope[1][:length])
        )
        read = mask[:, 1:].flatten().nonzero()[:, 0]
        losses = softcapped_cross_entropy(
            hidden[:, read],
            leaves["unembedding"],
            tokens[:, 1:].flatten()[read][None],
            gpt.logit_softcap,
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
        if (step + 1) % config.checkpoint_interval == 0 or step + 1 == config.num_steps:
            _checkpoint(config, weights, states, step + 1)
    shape = EmbeddedConfig(gpt, config.prompt_tokens, config.max_tokens)
    return EmbeddedStudent(shape, vocabulary, {name: weight[0] for name, weight in weights.items()})


def _checkpoint(config, weights, states, step):
    tensors = _state(weights, states) | {"step": torch.tensor([step])}
    config.out.mkdir(parents=True, exist_ok=True)
    partial = config.out / (CHECKPOINT + ".partial")
    save_file(tensors, partial, {"config": json.dumps(_described(config))})
    os.replace(partial, config.out / CHECKPOINT)


def _state(weights, states) -> dict[str, Tensor]:
    tensors = {f"weights/{name}": weight for name, weight in weights.items()}
    return tensors | {
        f"states/{name}/{slot}": v for name, state in states.items() for slot, v in state.items()
    }


def _resume(config, weights, states) -> int:
    path = config.out / CHECKPOINT
    if not path.is_file():
        return 0
    saved = load_file(path)
    for name, value in _state(weights, states).items():
        value.copy_(saved[name])
    return int(saved["step"])


def _check_out(config: StudentConfig) -> None:
    """Refuses a folder that cannot be written, or that holds a run, or another student or its checkpoint."""
    check_folder("out", config.out)
    if (config.out / CONFIG).exists():
        raise ValueError(
            f"out must be a folder without {CONFIG}, which a run or a model keeps; got {config.out}: give another --out"
        )
    for name in (CHECKPOINT, "student.json", "student.safetensors"):
        if (config.out / name).is_dir():
            raise ValueError(
                f"{config.out / name} must be a file; got a folder: move it away, or give another --out"
            )
    for file, read in (
        (config.out / CHECKPOINT, _made_checkpoint),
        (config.out / "student.json", _made_student),
    ):
        if not file.exists():
            continue
        try:
            theirs = read(file)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(
                f"{file} cannot be read ({type(error).__name__}: {error}); move it away, or give another --out"
            ) from error
        ours = {key: value for key, value in _described(config).items() if key not in MAY_CHANGE}
        different = {
            key: (theirs.get(key), value) for key, value in ours.items() if theirs.get(key) != value
        }
        if different:
            raise ValueError(
                f"{file} is of another student, differing as (there, asked): {different}; give another --out"
            )


def _made_checkpoint(file: Path) -> dict[str, object]:
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["config"])


def _made_student(file: Path) -> dict[str, object]:
    return json.loads(file.read_text(encoding="utf-8"))["notes"]["made_by"]


def _described(config: StudentConfig) -> dict[str, object]:
    return json.loads(json.dumps(asdict(config) | {"out": str(config.out)}, sort_keys=True))


def measured(student: EmbeddedStudent, num_problems: int = 256) -> dict[str, float]:
    """Returns what the grader says of the programs of a student without rewards, once per held-out problem."""
    plant = GRPOPlant(
        GRPOConfig(num_evaluation_problems=num_problems, num_workers=2), student=student
    )
    return {name: round(float(value[0]), 4) for name, value in plant.report().items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes, measures and saves."""
    config = configuration(StudentConfig, "train_agents.make_student", __doc__, arguments)
    torch.set_num_threads(config.threads)
    with refusals():
        gpt, vocabulary = begin(config)
    try:
        student = make(config, gpt, vocabulary)
    except KeyboardInterrupt:
        sys.exit(f"interrupted; the same command continues from {config.out}")
    report = measured(student)
    print(report)
    notes = {"made_by": _described(config), "held_out": report, "facts": environment_facts()}
    student.save(config.out, notes)
    (config.out / CHECKPOINT).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
