"""A plain training loop, as written by hand: same model, rules and probe, and no environment."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
import torch

from hpenv.lm import architecture, model
from hpenv.lm.data import batch_starts, gather, load_corpus
from hpenv.optim.optimizers import OPTIMIZERS
from hpenv.optim.rules import Rates


def plain_loop(interval: int, batch_tokens: int, sequence_length: int = 64) -> Iterator[float]:
    """Trains one `nano` run with AdamW + Muon at constant rates, without end.

    Yields:
        The probe loss at the start and after each interval [nats per token].
    """
    corpus, config, size = (
        load_corpus(),
        architecture.PRESETS["nano"],
        batch_tokens // sequence_length,
    )
    rope = model.rope_tables(config, sequence_length, "cpu")
    weights = architecture.init_parameters(config, [0])
    rules = {name: OPTIMIZERS["adamw_muon"][architecture.parameter_kind(name)] for name in weights}
    states = {name: rules[name].init(weight) for name, weight in weights.items()}
    groups = {
        rule: [name for name in weights if rules[name] is rule] for rule in set(rules.values())
    }
    rates = {
        rule: Rates.of(*torch.tensor([1e-3, 1e-2]).double().expand(1, len(n), 2).unbind(-1))
        for rule, n in groups.items()
    }

    probe = gather(
        corpus.probe,
        batch_starts(len(corpus.probe), 0, 0, 4 * size, sequence_length)[None],
        sequence_length,
    )

    @torch.no_grad()
    def measure() -> float:
        return float(model.mean_losses(weights, config, *probe, rope)[0])

    yield measure()
    for step in count():
        starts = batch_starts(len(corpus.train), 0, step, size, sequence_length)[None]
        inputs, targets = gather(corpus.train, starts, sequence_length)
        leaves = {name: weight.requires_grad_() for name, weight in weights.items()}
        losses = model.mean_losses(leaves, config, inputs, targets, rope)
        gradients = dict(
            zip(leaves, torch.autograd.grad(losses.sum(), list(leaves.values())), strict=True)
        )

        with torch.no_grad():
            for rule, names in groups.items():
                rule.update(
                    [weights[name] for name in names],
                    [gradients[name] for name in names],
                    [states[name] for name in names],
                    rates[rule],
                    np.array([step]),
                )

        if (step + 1) % interval == 0:
            yield measure()
