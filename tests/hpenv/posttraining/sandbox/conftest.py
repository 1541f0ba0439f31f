import pytest

from hpenv.posttraining.sandbox import Sandbox


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as made:
        yield made
