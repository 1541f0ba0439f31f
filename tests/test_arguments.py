"""Arguments of the ids: what is refused, and with which error."""

import pytest

from hpenv.envs import cell, grpo_projection, jel
from train_agents.evaluate import evaluate_policy

CONFIGS = {jel: jel.JELConfig, cell: cell.CellConfig, grpo_projection: grpo_projection.ProjectionConfig}


@pytest.mark.parametrize("module", CONFIGS, ids=lambda module: module.ID)
@pytest.mark.parametrize("kind", [TypeError, ValueError])
def test_an_unknown_keyword_is_pythons_error_and_ours(module, kind):
    for make in (module.make_env, module.make_vector_env):
        with pytest.raises(
            kind, match=rf"{module.ID} got an unexpected keyword argument 'frameskip'; expected some of"
        ):
            make(frameskip=1)
    with pytest.raises(kind, match="got unexpected keyword arguments 'b', 'frameskip'; expected some of"):
        module.make_env(frameskip=1, b=2)


def test_an_unknown_keyword_of_a_deployment_is_named():
    with pytest.raises(ValueError, match="TrainLoop-JEL-v0 got an unexpected keyword argument 'batch_token'"):
        evaluate_policy(None, jel.ID, {"batch_token": 64}, [0])
