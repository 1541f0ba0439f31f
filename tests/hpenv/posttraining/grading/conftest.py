import pytest

from hpenv.posttraining.sandbox import Sandbox, SandboxUnavailable


@pytest.fixture(scope="module")
def sandbox():
    """None where the kernel lacks what it needs."""
    try:
        box = Sandbox()
    except SandboxUnavailable:
        yield None
    else:
        with box:
            yield box


@pytest.fixture
def box(sandbox):
    if sandbox is None:
        pytest.skip("programs cannot be executed safely here")
    return sandbox
