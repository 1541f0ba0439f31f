from typing import Any

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def tiny() -> dict[str, Any]:
    """Keyword arguments of an environment of three decisions (10, 10 and 3 steps) that takes a fraction of a second."""
    return {
        "data": "synthetic",
        "batch_tokens": 64,
        "sequence_length": 16,
        "num_steps": 23,
        "interval": 10,
        "eval_tokens": 2048,
    }
