"""The table of clients. Each drives an id for a few decisions and raises if something is wrong."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpenv.envs.adaptive import ID as ADAPTIVE
from hpenv.envs.jel import ID as JEL
from tests.hpenv.integrations import gymnasium_clients, other_clients, sb3_clients

Drive = Callable[[str, dict[str, Any], Path], None]


#: One id whose actions are positions, and one whose actions are moves.
TWO = (JEL, ADAPTIVE)


@dataclass(frozen=True)
class Client:
    """One client.

    Attributes:
        drive: function of an id, its arguments and an empty folder.
        needs: modules without which it is skipped.
        by_default: ids on which it is run by default; all else is slow.
    """

    drive: Drive
    needs: tuple[str, ...] = ()
    by_default: tuple[str, ...] = ()


#: Name in docs/clients.md -> client.
CLIENTS = {
    "gymnasium wrappers": Client(gymnasium_clients.single_wrappers, ("array_api_compat",), (JEL,)),
    "gymnasium vector wrappers": Client(gymnasium_clients.vector_wrappers, (), (JEL,)),
    "gymnasium AsyncVectorEnv": Client(gymnasium_clients.worker_processes),
    "CleanRL form, gym.make": Client(gymnasium_clients.cleanrl, (), TWO),
    "CleanRL form, gym.make_vec": Client(gymnasium_clients.cleanrl_vector, (), TWO),
    "stable-baselines3, one run": Client(sb3_clients.single, (), TWO),
    "stable-baselines3, DummyVecEnv": Client(sb3_clients.dummy, (), TWO),
    "stable-baselines3, SubprocVecEnv": Client(sb3_clients.processes),
    "stable-baselines3, SB3VecEnv": Client(sb3_clients.adapter, (), TWO),
    "stable-baselines3, VecNormalize and EvalCallback": Client(sb3_clients.normalized, (), TWO),
    "sb3-contrib": Client(sb3_clients.contrib, ("sb3_contrib",)),
    "rl-zoo3": Client(other_clients.rl_zoo3, ("rl_zoo3",)),
    "TorchRL": Client(other_clients.torchrl, ("torchrl",)),
    "RLlib": Client(other_clients.rllib, ("ray.rllib",)),
    "Minari": Client(other_clients.minari, ("minari", "pyarrow")),
    "Optuna": Client(other_clients.optuna, ("optuna",)),
    "nevergrad": Client(other_clients.nevergrad, ("nevergrad",)),
    "cma": Client(other_clients.cma, ("cma",)),
    "trl": Client(other_clients.trl, ("trl", "datasets")),
    "OpenEnv": Client(other_clients.openenv, ("openenv", "uvicorn")),
}
