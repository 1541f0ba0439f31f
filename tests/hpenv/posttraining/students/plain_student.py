"""The embedded student's forward pass, without memory, adapters or population."""

import math
from functools import cache

import torch
import torch.nn.functional as F

from hpenv.posttraining.students.vocabulary import PAD
from tests.tiny_student import vocabulary

PROMPTS = [
    ["# Return the sum of xs.\n# The grader calls run_tests().\n", "# f([1, 2]) == 3\n"],
    ["# Return the larger of a and b.\n", "# xs\n"],
    ["# f([]) == 0\n", "# Return the even numbers of xs, each squared.\n"],
]
N, P, G = 3, 2, 4


def knobs_of(student, num_rows=N, scale=0.3):
    generator = torch.Generator().manual_seed(7)
    return {
        name: scale * torch.randn(num_rows, r, generator=generator)
        for name, r in student.ranks.items()
    }


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def sampled(student, knobs=None, seeds=(1, 2, 3), temperature=1.0):
    return student.sample(
        knobs_of(student) if knobs is None else knobs, PROMPTS, G, generators(*seeds), temperature
    )


def norm(x):
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()


@cache
def singular_vectors(student, name):
    U, _, Vh = torch.linalg.svd(student.weights[name].double(), full_matrices=False)
    return U, Vh


def plain(student, knobs, row, numbers):
    """Log-probabilities of the next token after every token of one text, (T, V), and the streams.

    A stream is given after each layer.

    float64, W + U diag(d) Vh written out from the singular values of W.
    """
    gpt, w = student.config.gpt, {name: weight.double() for name, weight in student.weights.items()}
    for name, knob in knobs.items():
        U, Vh = singular_vectors(student, name)
        w[name] = w[name] + U @ torch.diag(knob[row].double()) @ Vh
    T, heads, size = len(numbers), gpt.n_head, gpt.n_embd // gpt.n_head
    angles = torch.arange(T)[:, None] * gpt.rope_base ** (
        -torch.arange(size // 2).double() / (size // 2)
    )
    unseen = torch.ones(T, T, dtype=torch.bool).triu(1)

    def split(y):
        return y.view(T, heads, size).transpose(0, 1)  # (heads, T, size)

    def turned(y):
        left, right = y.chunk(2, -1)
        c, s = angles.cos(), angles.sin()
        return torch.cat([left * c + right * s, right * c - left * s], -1)

    x, streams = norm(w["embedding"][torch.tensor(numbers)]), []
    for i in range(gpt.n_layer):
        h = norm(x)
        q, k, v = (split(h @ w[f"layer.{i}.{name}"].T) for name in ("query", "key", "value"))
        scores = norm(turned(q)) @ norm(turned(k)).transpose(1, 2) / math.sqrt(size)
        mixed = scores.masked_fill(unseen, -math.inf).softmax(-1) @ v
        x = x + mixed.transpose(0, 1).reshape(T, -1) @ w[f"layer.{i}.output"].T
        x = x + F.relu(norm(x) @ w[f"layer.{i}.up"].T).square() @ w[f"layer.{i}.down"].T
        streams.append(x)
    logits = norm(x) @ w["unembedding"].T
    return (gpt.logit_softcap * torch.tanh(logits / gpt.logit_softcap)).log_softmax(-1), streams


def filled(student, prompt):
    numbers = vocabulary().encode(prompt)
    return [PAD] * (student.config.prompt_tokens - len(numbers)) + numbers


def each(rollouts):
    """Row, place, prompt and tokens up to the end, of every text."""
    for n in range(rollouts.tokens.shape[0]):
        for m in range(rollouts.tokens.shape[1]):
            numbers = rollouts.tokens[n, m][rollouts.mask[n, m]].tolist()
            yield n, m, rollouts.prompts[n][m // rollouts.num_samples], numbers


def plain_of_text(student, knobs, row, prompt, numbers):
    """Log-probabilities of a completion's tokens (T,), their distributions (T, V), and streams."""
    start = student.config.prompt_tokens
    logp, streams = plain(student, knobs, row, filled(student, prompt) + numbers)
    ahead = logp[start - 1 : start - 1 + len(numbers)]
    return (
        ahead.gather(1, torch.tensor(numbers)[:, None])[:, 0],
        ahead,
        [x[start:] for x in streams],
    )
