"""Students by name: those that are shipped, saved ones, and causal language models of Hugging Face's."""

from __future__ import annotations

from functools import lru_cache

from hpenv.posttraining.embedded import EmbeddedStudent
from hpenv.posttraining.huggingface import HuggingFaceStudent
from hpenv.posttraining.student import Student

HUGGING_FACE = "hf:"


def student(which: str | Student) -> Student:
    """The student of this name; frozen, so that all plants of a process share one.

    Args:
        which: name of a shipped student, the folder of an embedded one, `hf:<folder>` or `hf:<folder>:<GGUF file>`; or
            a student, as one that is to be loaded in another way.

    Raises:
        ValueError: if there is none.
        ImportError: if it needs what is not installed.
    """
    if isinstance(which, str):
        return _named(which)
    if not (hasattr(which, "log_probabilities") and hasattr(which, "settings")):
        raise ValueError(
            f"student={which!r}; expected the name of a shipped student, a folder, 'hf:<folder>', or a Student, as "
            "HuggingFaceStudent.load gives one, with all attributes of hpenv.posttraining.student.Student"
        )
    return which


@lru_cache(maxsize=4)
def _named(name: str) -> Student:
    if not name.startswith(HUGGING_FACE):
        return EmbeddedStudent.load(name)
    folder, _, gguf_file = name.removeprefix(HUGGING_FACE).partition(":")
    return HuggingFaceStudent.load(folder, gguf_file=gguf_file or None)
