"""Students by name: those that are shipped, saved ones, and causal language models of Hugging Face's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from hpenv.posttraining.embedded import EmbeddedStudent, embedded_folder
from hpenv.posttraining.embedded_files import DESCRIPTION, WEIGHTS
from hpenv.posttraining.huggingface import HuggingFaceStudent
from hpenv.posttraining.student import Student

HUGGING_FACE = "hf:"


def student(which: str | Student) -> Student:
    """Returns the student of this name; frozen, so that all plants of a process share one.

    What lies there is looked at every time: a student that has been written anew is loaded anew.

    Args:
        which: name of a shipped student, the folder of an embedded one, `hf:<folder>` or
            `hf:<folder>:<GGUF file>`; or a student, as one that is to be loaded in another way.

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


@dataclass(frozen=True)
class _Place:
    """Where a student lies. Two places are equal if what lies there is."""

    content: str
    name: str = field(compare=False)


def _named(name: str) -> Student:
    if not name.startswith(HUGGING_FACE):
        folder, files = embedded_folder(name), [DESCRIPTION, WEIGHTS]
    else:
        place, _, gguf_file = name.removeprefix(HUGGING_FACE).partition(":")
        folder = Path(os.path.expanduser(place))
        found = (
            sorted(entry.name for entry in folder.iterdir() if entry.is_file())
            if folder.is_dir()
            else []
        )
        files = [file for file in found if file == gguf_file or not file.endswith(".gguf")]
    return _loaded(_Place(_digest(folder, files), name))


def _digest(folder: Path, files: Sequence[str]) -> str:
    """Returns the sha256 of the files of a folder that are there, names included."""
    total = hashlib.sha256()
    for name in files:
        try:
            with open(folder / name, "rb") as file:
                total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        except OSError as error:
            total.update(
                f"{name} {error.errno}\n".encode()
            )  # who loads the student says what is wrong
    return total.hexdigest()


@lru_cache(maxsize=4)
def _loaded(place: _Place) -> Student:
    if not place.name.startswith(HUGGING_FACE):
        return EmbeddedStudent.load(place.name)
    folder, _, gguf_file = place.name.removeprefix(HUGGING_FACE).partition(":")
    return HuggingFaceStudent.load(folder, gguf_file=gguf_file or None)
