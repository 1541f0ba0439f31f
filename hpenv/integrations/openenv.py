"""Serves an id over OpenEnv's protocol, so that a language model can steer a run with tool calls.

A model reads text and calls one of two tools. `set_controls` takes a number in [-1, 1] for each
control and takes one decision. `describe` explains the controls and the observation. A call with
anything else is answered by an error, and no run advances. Nothing that a model writes is executed:
OpenEnv's MCPEnvironment has a mode that executes code, so this is a plain Environment.

    python -m hpenv.integrations.openenv --env TrainLoop-JEL-v0 --port 8000
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

try:
    import uvicorn
    from openenv.core.env_server.http_server import create_fastapi_app
    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.mcp_types import (
        CallToolAction,
        CallToolObservation,
        ListToolsAction,
        ListToolsObservation,
        Tool,
        ToolError,
        ToolErrorType,
    )
    from openenv.core.env_server.types import Action, Observation, State
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "hpenv.integrations.openenv needs OpenEnv; install it with: pip install openenv",
        name=error.name,
    ) from error

SET_CONTROLS, DESCRIBE = "set_controls", "describe"


class RunObservation(Observation):
    """Observation of a new run, as text."""

    text: str


class TrainingRun(Environment[Action, Observation, State]):
    """One run of an id behind OpenEnv's interface.

    Args:
        env_id: a registered id of a training loop.
        env_kwargs: keyword arguments of the id.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, env_id: str, env_kwargs: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        arguments = {} if env_kwargs is None else dict(env_kwargs)
        self.env_id = env_id
        self.env: Any = gym.make(f"hpenv:{env_id}", **arguments).unwrapped
        self._state = State(episode_id=None, step_count=0)
        self._is_running = False

    def reset(
        self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any
    ) -> RunObservation:
        """Begins a new run. Returns its observation, and the description of the controls."""
        observation, _ = self.env.reset(seed=seed)
        self._state = State(episode_id=episode_id, step_count=0)
        self._is_running = True
        return RunObservation(text=f"{self.describe()}\n\n{self._text(observation)}")

    def step(self, action: Action, timeout_s: float | None = None, **kwargs: Any) -> Observation:
        """Answers a tool call. Only a valid call of `set_controls` takes a decision."""
        if isinstance(action, ListToolsAction):
            return ListToolsObservation(tools=self.tools())
        if not isinstance(action, CallToolAction):
            raise ValueError(
                f"action must be a tool call or a list of tools; got a {type(action).__name__}"
            )

        if action.tool_name == DESCRIBE:
            return CallToolObservation(
                tool_name=DESCRIBE, result=self.describe(), done=not self._is_running
            )
        if action.tool_name != SET_CONTROLS:
            known = [SET_CONTROLS, DESCRIBE]
            return self._error(
                action.tool_name,
                ToolErrorType.TOOL_NOT_FOUND,
                f"tool must be one of {known}; got {action.tool_name!r}",
            )

        if not self._is_running:
            message = "the run has ended or has not begun; reset first"
            return self._error(SET_CONTROLS, ToolErrorType.EXECUTION_ERROR, message)
        try:
            positions = positions_of(action.arguments, self.env.action_names)
        except ValueError as error:
            return self._error(SET_CONTROLS, ToolErrorType.INVALID_ARGS, str(error))
        return self._decide(positions)

    def _decide(self, positions: np.ndarray) -> CallToolObservation:
        observation, reward, terminated, truncated, _ = self.env.step(positions)
        done = bool(terminated or truncated)
        self._is_running = not done
        self._state.step_count += 1

        text = self._text(observation)
        if done:  # no decision can follow, so the held-out score gives nothing away
            score = self.env.plant.score
            text += f"\nThe run has ended. Held-out {score.key}: {float(self.env.evaluate()):.6g}"
        return CallToolObservation(
            tool_name=SET_CONTROLS, result=text, reward=float(reward), done=done
        )

    def _error(self, tool: str, kind: ToolErrorType, message: str) -> CallToolObservation:
        failure = ToolError(error_type=kind, message=message)
        return CallToolObservation(tool_name=tool, error=failure, done=not self._is_running)

    @property
    def state(self) -> State:
        """Episode and number of decisions so far."""
        return self._state

    def tools(self) -> list[Tool]:
        """Returns the tools with the JSON schemas of their arguments."""
        number = {"type": "number", "minimum": -1.0, "maximum": 1.0}
        controls = {
            "type": "object",
            "properties": dict.fromkeys(self.env.action_names, number),
            "additionalProperties": False,
        }
        nothing = {"type": "object", "properties": {}, "additionalProperties": False}
        return [
            Tool(
                name=SET_CONTROLS,
                description="Sets the controls and trains until the next decision. "
                "A control that is left out is at 0.",
                input_schema=controls,
            ),
            Tool(
                name=DESCRIBE,
                description="Explains the controls and the observation.",
                input_schema=nothing,
            ),
        ]

    def describe(self) -> str:
        """Returns the controls, the columns of the observation and the length of a run, as text."""
        vector = self.env.vector
        meaning = "0 holds a control" if vector.moves else "0 leaves the training as it is"
        return (
            f"{self.env_id}: a training run of {vector.num_steps} optimizer steps in "
            f"{vector.num_decisions} decisions. Each control is a number from -1 to 1; {meaning}.\n"
            f"Controls: {', '.join(self.env.action_names)}\n"
            f"Observation: {', '.join(self.env.observation_names)}"
        )

    def _text(self, observation: np.ndarray) -> str:
        pairs = zip(self.env.observation_names, observation.tolist(), strict=True)
        lines = [f"Decision {self._state.step_count} of {self.env.vector.num_decisions}"]
        return "\n".join(lines + [f"{name} = {value:.6g}" for name, value in pairs])

    def close(self) -> None:
        """Closes the env."""
        self.env.close()


def positions_of(arguments: Mapping[str, Any], names: Sequence[str]) -> np.ndarray:
    """Returns the positions (A,) float32 of a tool call. A control that is not named is at 0.

    Raises:
        ValueError: a name is unknown, or a value is no number from -1 to 1.
    """
    positions = np.zeros(len(names), dtype=np.float32)
    for name, value in arguments.items():
        if name not in names:
            raise ValueError(f"unknown control {name!r}; expected some of {list(names)}")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and math.isfinite(value) and -1.0 <= value <= 1.0):
            raise ValueError(f"{name} must be a number from -1 to 1; got {value!r}")
        positions[list(names).index(name)] = value
    return positions


def application(
    env_id: str, env_kwargs: Mapping[str, Any] | None = None, max_sessions: int = 4
) -> Any:
    """Returns a FastAPI application that serves runs of an id, one per session.

    Args:
        env_id: a registered id of a training loop.
        env_kwargs: keyword arguments of the id.
        max_sessions: largest number of sessions at a time.
    """
    return create_fastapi_app(
        lambda: TrainingRun(env_id, env_kwargs),
        CallToolAction,
        CallToolObservation,
        max_concurrent_envs=max_sessions,
        env_name=env_id,
        reset_observation_cls=RunObservation,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves an id until it is interrupted."""
    parser = argparse.ArgumentParser("hpenv.integrations.openenv", description=__doc__)
    parser.add_argument("--env", default="TrainLoop-JEL-v0", help="a registered id")
    parser.add_argument("--env-kwargs", type=json.loads, default={}, help="arguments, as JSON")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at")
    given = parser.parse_args(arguments)
    uvicorn.run(application(given.env, given.env_kwargs), host=given.host, port=given.port)


if __name__ == "__main__":
    main()
