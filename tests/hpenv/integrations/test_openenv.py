"""Tool calls of a language model: bounded, and without an effect if they are wrong."""

import numpy as np
import pytest

pytest.importorskip("openenv")

from openenv.core.env_server.mcp_types import CallToolAction, ListToolsAction

from hpenv.integrations.openenv import TrainingRun
from tests.hpenv.envs.every_id import JEL
from tests.hpenv.envs.small_arguments import SMALL


def call(run, tool="set_controls", **values):
    return run.step(CallToolAction(tool_name=tool, arguments=values))


def test_a_run_that_is_steered_by_tool_calls_is_the_run_of_the_same_actions():
    run, twin = TrainingRun(JEL, SMALL[JEL]), TrainingRun(JEL, SMALL[JEL]).env
    run.reset(seed=3)
    twin.reset(seed=3)
    for lr in (0.5, -0.25, 1):
        _, reward, terminated, _, _ = twin.step(np.array([lr, 0.0], dtype=np.float32))
        answer = call(run, lr=lr)
        assert (answer.reward, answer.done) == (float(reward), terminated)
    assert f"{float(twin.evaluate()):.6g}" in answer.result


@pytest.mark.parametrize("value", [1.01, -2, float("nan"), float("inf"), "0.5", True, None, [0.1]])
def test_a_value_that_is_no_number_in_the_box_trains_nothing(value):
    run = TrainingRun(JEL, SMALL[JEL])
    run.reset(seed=3)
    answer = call(run, lr=value)
    assert answer.error.error_type == "invalid_args" and "from -1 to 1; got" in answer.error.message
    assert run.env.vector.steps.tolist() == [0] and run.state.step_count == 0


def test_the_tools_are_two_and_none_takes_code():
    run = TrainingRun(JEL, SMALL[JEL])
    tools = run.step(ListToolsAction()).tools
    assert [tool.name for tool in tools] == ["set_controls", "describe"]
    assert all(tool.input_schema["additionalProperties"] is False for tool in tools)
    assert not getattr(run, "supports_code_mode", False)
