"""Runs of GPT-2 in the Trainer of transformers, with a controller attached or without one."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
)

from hpenv.benchmark.results import Rows
from hpenv.deploy.trainer import ControllerCallback
from hpenv.lm.data import batch_starts, gather, load_corpus
from hpenv.policies.adaptive_rates import UpdateRatio
from hpenv.policies.control_law import AdaptiveRL
from hpenv.policies.controller import Controller

#: Controllers that work on any optimizer.
CONTROLLERS = {"ratio_law": UpdateRatio, "adaptiverl": AdaptiveRL}
#: Evaluations of the probe in a run.
NUM_PROBES = 10
#: Fraction of a run over which a schedule rises to its rate.
WARMUP = 0.05
#: Rows of an evaluation in one forward pass.
EVALUATION_ROWS = 64


def make_model(n_layer: int, n_embd: int, sequence_length: int) -> GPT2LMHeadModel:
    """Returns a GPT-2 of this size with random weights, over bytes, without dropout."""
    config = GPT2Config(
        vocab_size=256,
        n_positions=sequence_length,
        n_embd=n_embd,
        n_layer=n_layer,
        n_head=max(1, n_embd // 32),
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    return GPT2LMHeadModel(config)


def make_optimizer(model: GPT2LMHeadModel, lr: float) -> torch.optim.AdamW:
    """Returns an AdamW with the groups that hpenv's own models have: blocks count as matrices."""
    groups: dict[str, list[Tensor]] = {"embedding": [], "matrix": [], "unembedding": []}
    for name, parameter in model.named_parameters():
        kind = "embedding" if ".wte." in name or ".wpe." in name else "matrix"
        groups["unembedding" if name.startswith("lm_head") else kind].append(parameter)
    named = [{"name": name, "params": parameters} for name, parameters in groups.items()]
    return torch.optim.AdamW(named, lr=lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def make_arguments(folder: str, num_steps: int, batch_rows: int, seed: int) -> TrainingArguments:
    """Returns the arguments of a Trainer that does nothing but train, on the CPU."""
    return TrainingArguments(
        output_dir=folder,
        max_steps=num_steps,
        per_device_train_batch_size=batch_rows,
        max_grad_norm=0.0,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=seed,
    )


@torch.no_grad()
def evaluate(model: GPT2LMHeadModel, rows: Tensor) -> float:
    """Returns the mean loss of rows of bytes, (R, T + 1) [nats per byte]."""
    model.eval()
    total = 0.0
    for part in rows.split(EVALUATION_ROWS):
        logits = model(input_ids=part[:, :-1]).logits
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten())
        total += float(losses) * len(part)
    model.train()
    return total / len(rows)


class _Probe(TrainerCallback):
    """Keeps the probe loss of the steps 0, n, 2 n, ... and of the last one."""

    def __init__(self, rows: Tensor, every: int) -> None:
        self._rows, self._every = rows, every
        self.steps: list[int] = []
        self.losses: list[float] = []

    def _measure(self, state: Any, model: Any) -> None:
        self.steps.append(int(state.global_step))
        self.losses.append(evaluate(model, self._rows))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._measure(state, kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._every == 0 or state.global_step == state.max_steps:
            self._measure(state, kwargs["model"])


def _slice(tokens: Tensor, seed: int, rows: int, length: int) -> Tensor:
    """Returns rows of a slice of the corpus, one byte longer than the model's context."""
    starts = batch_starts(len(tokens), seed, 0, rows, length)[None]
    inputs, targets = gather(tokens, starts, length)
    return torch.cat([inputs[0], targets[0][:, -1:]], dim=1).long()


def _run(
    seed: int,
    model: Mapping[str, int],
    schedule: str,
    base_lr: float,
    controller: Controller | None,
    num_steps: int,
    batch_rows: int,
    eval_rows: int,
) -> dict[str, Any]:
    """Returns the row of one run."""
    torch.manual_seed(seed)
    network = make_model(**model)
    corpus, length = load_corpus(), model["sequence_length"]
    rows = _slice(corpus.train, seed, num_steps * batch_rows, length)
    data = [{"input_ids": row[:-1], "labels": row[:-1]} for row in rows]
    optimizer = make_optimizer(network, base_lr)
    warmup = round(WARMUP * num_steps)
    scheduler = get_scheduler(schedule, optimizer, warmup, num_steps)
    probe = _Probe(_slice(corpus.probe, 0, eval_rows, length), max(1, num_steps // NUM_PROBES))
    callbacks: list[Any] = [probe]
    if controller is not None:
        callbacks.append(ControllerCallback(controller))

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            network,
            make_arguments(folder, num_steps, batch_rows, seed),
            train_dataset=data,
            optimizers=(optimizer, scheduler),
            callbacks=callbacks,
        )
        trainer.train()

    loss = evaluate(network, _slice(corpus.validation, 0, 4 * eval_rows, length))
    attachment = None if controller is None else callbacks[-1].attachment
    history = [] if attachment is None else attachment.history
    is_finite = math.isfinite(loss)
    return {
        "seed": seed,
        "corpus": corpus.digest,
        "bpb": loss / math.log(2) if is_finite else None,
        "divergence_reason": None if is_finite else "the held-out loss is not finite",
        "steps": probe.steps,
        "probe_curve": probe.losses,
        "probe_loss": probe.losses[-1],
        "decisions": [decision.step for decision in history],
        "multipliers": [list(decision.multipliers["lr"]) for decision in history],
    }


def run_trainers(
    seeds: Sequence[int],
    kind: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    **run: Any,
) -> Rows:
    """Trains one GPT-2 per seed, each with a new controller.

    Args:
        seeds: of initial weights and batches.
        kind: key of CONTROLLERS, or None for runs without a controller.
        arguments: arguments of the controller.
        run: `model` (arguments of `make_model`), `schedule` (a name of transformers), `base_lr`,
            `num_steps`, `batch_rows` and `eval_rows`.

    Returns:
        A row per run with held-out bits per byte, the probe loss over the steps, and the decisions
        with the multipliers of the groups' rates.
    """
    torch.set_num_threads(1)
    made = [None if kind is None else CONTROLLERS[kind](**(arguments or {})) for _ in seeds]
    return [_run(seed, controller=own, **run) for seed, own in zip(seeds, made, strict=True)], {}


def tune_trainers(
    rates: Sequence[float],
    tuning_seeds: Sequence[int],
    evaluation_seeds: Sequence[int],
    **run: Any,
) -> Rows:
    """Chooses the rate with the lowest mean probe loss on tuning seeds, and evaluates it.

    Returns:
        Rows of `run_trainers` of the chosen rate, and `chosen`, `rate`, `table` and `runs_spent` as
        of `sweeping.sweep`.
    """
    tried = {f"{rate:g}": run_trainers(tuning_seeds, base_lr=rate, **run)[0] for rate in rates}
    scores = {name: float(np.mean([_score(row) for row in rows])) for name, rows in tried.items()}
    best = min(scores, key=scores.__getitem__)
    table = [
        {"configuration": name, "probe_loss": scores[name], "bpb": [row["bpb"] for row in rows]}
        for name, rows in tried.items()
    ]
    rows = run_trainers(evaluation_seeds, base_lr=float(best), **run)[0]
    spent = len(rates) * len(tuning_seeds)
    return rows, {"chosen": best, "rate": float(best), "table": table, "runs_spent": spent}


def _score(row: Mapping[str, Any]) -> float:
    return row["probe_loss"] if math.isfinite(row["probe_loss"]) else row["probe_curve"][0]
