"""A tiny Hugging Face student, and its plain forward pass."""

import torch

import hpenv  # noqa: F401  registers the ids
from hpenv.posttraining.students.huggingface import HuggingFaceConfig, HuggingFaceStudent
from tests.tiny_qwen3 import byte_tokenizer, qwen3

PROMPTS = [["# f([1]) == 2\n", "# the largest of xs\n"], ["# xs\n", "# f([3, 4]) == 0\n"]]


def student(chat: bool = False, model=None, **config) -> HuggingFaceStudent:
    arguments = {"max_tokens": 12} | config
    return HuggingFaceStudent(
        model or qwen3(), byte_tokenizer(chat), HuggingFaceConfig(**arguments)
    )


def zeros(own: HuggingFaceStudent, N: int = 2) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(N, r) for name, r in own.ranks.items()}


def some_knobs(
    own: HuggingFaceStudent, N: int = 2, scale: float = 0.1, seed: int = 5
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(N, r, generator=generator) for name, r in own.ranks.items()}


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]
