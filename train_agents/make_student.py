"""Makes an embedded student: `python -m train_agents.make_student`.

`--out hpenv/posttraining/students/shipped/nano` makes the student of the package.

The student reads demonstrations, most of which are wrong, and learns to predict the next token of
their programs. Training uses no reward and executes no program. Afterwards the student writes one
program per held-out problem. The grader's rates are saved with its weights: how much it solves, and
how often it uses a loophole before any reward has paid for it. After an interruption, the same
command continues from the last checkpoint. A folder with a checkpoint or a student of another
configuration is refused.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from hpenv.benchmark.command_line import check_counts, configuration, refusals
from hpenv.benchmark.facts import environment_facts
from hpenv.benchmark.files import check_folder
from hpenv.lm import architecture, model
from hpenv.lm.architecture import GPTConfig
from hpenv.lm.kernels import softcapped_cross_entropy
from hpenv.lm.stored import write_tensors
from hpenv.optim.optimizers import optimizer_rules
from hpenv.optim.rules import Rates
from hpenv.optim.schedules import WarmupFlatWarmdown
from hpenv.posttraining.config import GRPOConfig
from hpenv.posttraining.contrastive.pairs import PAIRS
from hpenv.posttraining.plant import GRPOPlant
from hpenv.posttraining.students.embedded import EmbeddedStudent
from hpenv.posttraining.students.embedded_files import EmbeddedConfig
from hpenv.posttraining.students.vocabulary import END, PAD, Vocabulary
from train_agents.demonstrations import DemonstrationConfig, demonstrations
from train_agents.outputs import CONFIG

CHECKPOINT = "checkpoint.safetensors"
#: Fields of the configuration that may differ when an interrupted program continues.
MAY_CHANGE = ("out", "threads", "checkpoint_interval")


@dataclass(frozen=True)
class StudentConfig:
    """Configuration of a student and of its training."""

    n_layer: int = 3  # layers
    n_head: int = 2  # heads of attention
    n_embd: int = 64  # width
    vocabulary_size: int = 512  # tokens
    vocabulary_texts: int = 4000  # demonstrations whose words are counted for the vocabulary
    prompt_tokens: int = 64  # longest prompt [tokens]
    max_tokens: int = 52  # longest completion [tokens]; the longest demonstration has 51
    demonstrations: DemonstrationConfig = field(default_factory=DemonstrationConfig)
    num_steps: int = 3000  # optimizer steps
    batch_size: int = 64  # demonstrations per step
    base_lr: float = 3e-3  # learning rate of AdamW; Muon's is ten times as high
    seed: int = 0  # of weights and demonstrations
    threads: int = 1  # torch threads
    checkpoint_interval: int = 250  # steps between checkpoints [steps]
    out: Path = Path("runs/student")  # folder of the student

    def __post_init__(self) -> None:
        """Checks sizes, seed and learning rate."""
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
            raise ValueError(f"base_lr must be > 0; got {self.base_lr}")


def batches(config: StudentConfig, vocabulary: Vocabulary) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (tokens, mask) of each step without end, (batch, length) each.

    The mask is True for the tokens of completions.
    """
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
            f"prompt_tokens and max_tokens must be at least {len(numbers)} and {len(completion)}, "
            f"for the demonstration {prompt!r}; got {config.prompt_tokens} and {config.max_tokens}"
        )


def begin(config: StudentConfig) -> tuple[GPTConfig, Vocabulary]:
    """Checks configuration and folder, and returns the student's shape and vocabulary.

    Raises:
        ValueError: the sizes do not fit each other or the demonstrations, or the folder holds
            another student.
    """
    _check_out(config)
    texts = itertools.islice(
        demonstrations(config.demonstrations, config.seed + 1), config.vocabulary_texts
    )
    # The pairs' words get tokens, or a few rare words would be spelled. The pairs are never read.
    words: list[str] = []

    for pair in PAIRS:
        words.extend((pair.prompt, pair.hack, pair.clean))

    vocabulary = Vocabulary.of(
        itertools.chain(itertools.chain.from_iterable(texts), words), config.vocabulary_size
    )
    gpt = GPTConfig(
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.n_embd,
        vocab_size=len(vocabulary),
    )

    # Checks as many of the texts in training, because one that is too long would end the program.
    for prompt, program in itertools.islice(
        demonstrations(config.demonstrations, config.seed), config.vocabulary_texts
    ):
        _check_lengths(
            config, prompt, vocabulary.encode(prompt), [*vocabulary.encode(program), END]
        )

    return gpt, vocabulary


def make(config: StudentConfig, gpt: GPTConfig, vocabulary: Vocabulary) -> EmbeddedStudent:
    """Trains the weights, shows progress, and writes checkpoints to config.out."""
    weights = architecture.init_parameters(gpt, [config.seed])
    rules = optimizer_rules("adamw_muon")
    groups = {name: architecture.parameter_kind(name) for name in weights}
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
        targets = mask[:, 1:].flatten().nonzero()[:, 0]  # places of the completions' tokens
        losses = softcapped_cross_entropy(
            hidden[:, targets],
            leaves["unembedding"],
            tokens[:, 1:].flatten()[targets][None],
            gpt.logit_softcap,
        )
        loss = losses.mean()
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

        at = np.array([step])
        for group in dict.fromkeys(groups.values()):
            names = [name for name, kind in groups.items() if kind == group]
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
    metadata = {"config": json.dumps(_json_values(config))}
    write_tensors(config.out / CHECKPOINT, tensors, metadata)


def _state(weights, states) -> dict[str, Tensor]:
    tensors = {f"weights/{name}": weight for name, weight in weights.items()}
    for name, state in states.items():
        tensors |= {f"states/{name}/{slot}": value for slot, value in state.items()}
    return tensors


def _resume(config, weights, states) -> int:
    path = config.out / CHECKPOINT
    if not path.is_file():
        return 0
    saved = load_file(path)
    for name, value in _state(weights, states).items():
        value.copy_(saved[name])
    return int(saved["step"])


def _check_out(config: StudentConfig) -> None:
    """Checks that a folder can be written and holds no run, and no other student or checkpoint."""
    check_folder("out", config.out)
    if (config.out / CONFIG).exists():
        raise ValueError(
            f"out must be a folder without {CONFIG} of a run or a model; got {config.out}; "
            "give another --out"
        )

    for name in (CHECKPOINT, "student.json", "student.safetensors"):
        if (config.out / name).is_dir():
            raise ValueError(
                f"{config.out / name} must be a file; got a folder; "
                "move it away, or give another --out"
            )

    for file, read in (
        (config.out / CHECKPOINT, _checkpoint_configuration),
        (config.out / "student.json", _student_configuration),
    ):
        if not file.exists():
            continue
        try:
            theirs = read(file)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(
                f"{file} must be readable; got {type(error).__name__}: {error}; "
                "move it away, or give another --out"
            ) from error

        ours = {key: value for key, value in _json_values(config).items() if key not in MAY_CHANGE}
        different = {
            key: (theirs.get(key), value) for key, value in ours.items() if theirs.get(key) != value
        }
        if different:
            raise ValueError(
                f"{file} must be of the same student; got differences (there, given): {different}; "
                "give another --out"
            )


def _checkpoint_configuration(file: Path) -> dict[str, object]:
    with safe_open(file, "pt") as checkpoint:
        return json.loads(checkpoint.metadata()["config"])


def _student_configuration(file: Path) -> dict[str, object]:
    return json.loads(file.read_text(encoding="utf-8"))["notes"]["made_by"]


def _json_values(config: StudentConfig) -> dict[str, object]:
    return json.loads(json.dumps(asdict(config) | {"out": str(config.out)}, sort_keys=True))


def held_out_rates(student: EmbeddedStudent, num_problems: int = 256) -> dict[str, float]:
    """Returns the grader's rates for a student without rewards, once per held-out problem."""
    plant = GRPOPlant(
        GRPOConfig(num_evaluation_problems=num_problems, num_workers=2), student=student
    )
    return {name: round(float(value[0]), 4) for name, value in plant.report().items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, measures and saves a student."""
    config = configuration(StudentConfig, "train_agents.make_student", __doc__, arguments)
    torch.set_num_threads(config.threads)

    with refusals():
        gpt, vocabulary = begin(config)
    try:
        student = make(config, gpt, vocabulary)
    except KeyboardInterrupt:
        sys.exit(f"interrupted; the same command continues from {config.out}")

    report = held_out_rates(student)
    print(report)
    notes = {"made_by": _json_values(config), "held_out": report, "facts": environment_facts()}
    student.save(config.out, notes)
    (config.out / CHECKPOINT).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
