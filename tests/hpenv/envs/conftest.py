import numpy as np
import pytest

import hpenv  # noqa: F401  registers the ids
from tests import tiny_student
from tests.hpenv.envs.every_id import PROJECTION, SMALL


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory):
    """A random student in whose vocabulary every other short text compiles.

    So rewards differ.
    """
    folder = tmp_path_factory.mktemp("students") / "tiny"
    tiny_student.student(3, seed=5, end=6.0).save(folder, {})
    return str(folder)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """A text of 20,000 letters, which other processes read in no time."""
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_bytes(
        np.random.default_rng(0).choice(list(b"abcdefgh \n"), 20_000).astype(np.uint8).tobytes()
    )
    return str(file)


@pytest.fixture
def tiny_projection(student_folder):
    """As `tiny`: three decisions, of 2, 2 and 1 updates.

    Directions come from few pairs.
    """
    with tiny_student.few_pairs():
        yield tiny_student.TINY | {
            "num_samples": 2,
            "num_steps": 5,
            "interval": 2,
            "student": student_folder,
        }


@pytest.fixture
def small(id, request, text_file):
    if id == PROJECTION:
        return request.getfixturevalue("tiny_projection")
    return {"data": text_file} | SMALL[id]
