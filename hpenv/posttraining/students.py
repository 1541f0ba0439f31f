"""Students by name: those that are shipped, saved ones, and causal language models of Hugging Face's."""

from __future__ import annotations

from functools import lru_cache

from hpenv.posttraining.embedded import EmbeddedStudent
from hpenv.posttraining.huggingface import HuggingFaceStudent
from hpenv.posttraining.student import Student

HUGGING_FACE = "hf:"


@lru_cache(maxsize=4)
def student(name: str) -> Student:
    """The student of this name; frozen, so that all plants of a process share one.

    Args:
        name: of a shipped student, the folder of an embedded one, or `hf:<folder>` or `hf:<folder>:<GGUF file>`.

    Raises:
        ValueError: if there is none.
        ImportError: if it needs what is not installed.
    """
    if not isinstance(name, str):
        raise ValueError(f"student={name!r}; expected the name of a shipped student, a folder, or 'hf:<folder>'")
    if not name.startswith(HUGGING_FACE):
        return EmbeddedStudent.load(name)
    folder, _, gguf_file = name.removeprefix(HUGGING_FACE).partition(":")
    return HuggingFaceStudent.load(folder, gguf_file=gguf_file or None)
