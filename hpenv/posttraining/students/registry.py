"""Students by name: shipped ones, saved ones, and causal language models of Hugging Face."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from hpenv.posttraining.students.embedded import EmbeddedStudent
from hpenv.posttraining.students.embedded_files import DESCRIPTION, WEIGHTS, embedded_folder
from hpenv.posttraining.students.huggingface import HuggingFaceStudent
from hpenv.posttraining.students.student import Student

HUGGING_FACE = "hf:"


def student(which: str | Student) -> Student:
    """Returns the student of this name. All plants of a process share it, since it is frozen.

    The files are read at every call. A student whose files have changed is loaded again.

    Args:
        which: name of a shipped student, folder of an embedded one, `hf:<folder>`,
            `hf:<folder>:<GGUF file>`, or a Student object, e.g. one with its own configuration.

    Raises:
        ValueError: if there is no such student.
        ImportError: if it needs a package that is not installed.
    """
    if isinstance(which, str):
        return _student_by_name(which)
    if not (hasattr(which, "log_probabilities") and hasattr(which, "settings")):
        raise ValueError(
            "student must be the name of a shipped student, a folder, 'hf:<folder>', or a Student "
            "(e.g. from HuggingFaceStudent.load) with all attributes of "
            f"hpenv.posttraining.students.student.Student; got {which!r}"
        )
    return which


@dataclass(frozen=True)
class _Place:
    """Place of a student's files. Two places are equal if the files have the same contents."""

    content: str
    name: str = field(compare=False)


def _student_by_name(name: str) -> Student:
    if not name.startswith(HUGGING_FACE):
        folder, files = embedded_folder(name), [DESCRIPTION, WEIGHTS]
    else:
        place, _, gguf_file = name.removeprefix(HUGGING_FACE).partition(":")
        folder = Path(os.path.expanduser(place))
        entries = folder.iterdir() if folder.is_dir() else ()
        names = sorted(entry.name for entry in entries if entry.is_file())
        files = [file for file in names if file == gguf_file or not file.endswith(".gguf")]
    return _load(_Place(_digest(folder, files), name))


def _digest(folder: Path, files: Sequence[str]) -> str:
    """Returns the sha256 of the names and contents of files in a folder."""
    total = hashlib.sha256()
    for name in files:
        try:
            with open(folder / name, "rb") as file:
                total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        except OSError as error:
            # Loading the student will say what is wrong.
            total.update(f"{name} {error.errno}\n".encode())
    return total.hexdigest()


@lru_cache(maxsize=4)
def _load(place: _Place) -> Student:
    if not place.name.startswith(HUGGING_FACE):
        return EmbeddedStudent.load(place.name)
    folder, _, gguf_file = place.name.removeprefix(HUGGING_FACE).partition(":")
    return HuggingFaceStudent.load(folder, gguf_file=gguf_file or None)
