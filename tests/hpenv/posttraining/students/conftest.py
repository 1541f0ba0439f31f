import pytest

from tests import tiny_student


@pytest.fixture
def student():
    return tiny_student.student(max_tokens=tiny_student.SHORT)
