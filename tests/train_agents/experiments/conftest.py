import pytest

from tests import tiny_student


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    path = tmp_path_factory.mktemp("students") / "short"
    tiny_student.student(max_tokens=tiny_student.SHORT).save(path, {})
    return str(path)


@pytest.fixture
def folder(short):
    """A tiny student of short texts, as a folder.

    Plants of the test extract their direction from a few short pairs.
    """
    with tiny_student.few_pairs():
        yield short


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    """A tiny student with room for every pair and labelled program."""
    path = tmp_path_factory.mktemp("students") / "roomy"
    tiny_student.student().save(path, {})
    return str(path)
