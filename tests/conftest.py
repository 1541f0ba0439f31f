from typing import Any

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--torch-threads", type=int, default=1, help="threads of torch in each test process"
    )


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(config.getoption("--torch-threads"))


@pytest.fixture
def tiny() -> dict[str, Any]:
    """Keyword arguments of an environment of three decisions (10, 10 and 3 steps).

    An episode takes a fraction of a second.
    """
    return {
        "data": "synthetic",
        "batch_tokens": 64,
        "sequence_length": 16,
        "num_steps": 23,
        "interval": 10,
        "eval_tokens": 2048,
    }
