"""Short online runs, and what they leave in a folder."""

import json
from pathlib import Path

from agents.sidecar_config import SidecarConfig
from train_agents.online import OnlineConfig

ENV = {
    "preset": "nano", "data": "synthetic", "num_steps": 11, "batch_tokens": 32,
    "sequence_length": 16,
    "eval_tokens": 256, "num_registers": 2,
}  # fmt: skip
#: Different intervals, so that no two coincide by chance.
PACES = {"eval_interval": 4, "trace_interval": 3, "log_interval": 2, "checkpoint_interval": 5}


def tiny(out: Path, **changes) -> OnlineConfig:
    sidecar = SidecarConfig(hidden_size=8, **changes.pop("sidecar", {}))
    return OnlineConfig(
        **{"seeds": 2, "first_seed": 3, "out": out, "tensorboard": False, **PACES, **changes},
        sidecar=sidecar,
    )


def progress(folder):
    return [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
