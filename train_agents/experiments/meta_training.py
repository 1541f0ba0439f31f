"""Meta-training of a controller inside a job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpenv.policies import Policy, load_policy
from train_agents.train import TrainConfig, train


def meta_train(
    folder: Path, env_id: str, env_kwargs: Mapping[str, Any], **options: Any
) -> tuple[Policy, list[dict[str, float]]]:
    """Trains a controller in a folder, or goes on with it.

    Args:
        folder: for checkpoints, logs and the policy.
        env_id: a registered id of a training loop.
        env_kwargs: arguments of the env.
        options: other fields of TrainConfig.

    Returns:
        The policy, and the metrics of each update.
    """
    texts = tuple(f"{key}={json.dumps(value)}" for key, value in env_kwargs.items())
    train(TrainConfig(env=env_id, env_kwargs=texts, out=folder, **options))
    lines = (folder / "progress.jsonl").read_text().splitlines()
    return load_policy(folder / "policy"), [json.loads(line) for line in lines]
