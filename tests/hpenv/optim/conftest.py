import pytest

from tests.hpenv.optim.references import RULES


@pytest.fixture(params=RULES.values(), ids=lambda rule: type(rule).__name__)
def rule(request):
    return request.param
