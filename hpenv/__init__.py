"""Training a transformer as a Gymnasium environment; importing this registers the ids and nothing
else.

The manual of an environment is the docstring of its module, as in `help("hpenv.envs.jel")`:
`hpenv.envs.jel` for TrainLoop-JEL-v0, `hpenv.envs.cell` for TrainLoop-Cell-v0,
`hpenv.envs.grpo_projection` for TrainLoop-GRPOProjection-v0.
"""

from gymnasium.envs.registration import register

for _id, _module in (
    ("TrainLoop-JEL-v0", "jel"),
    ("TrainLoop-Cell-v0", "cell"),
    ("TrainLoop-GRPOProjection-v0", "grpo_projection"),
):
    register(
        id=_id,
        entry_point=f"hpenv.envs.{_module}:make_env",
        vector_entry_point=f"hpenv.envs.{_module}:make_vector_env",
        # Both of Gymnasium's wrappers take a step without a reset for a mistake, which after
        # restore() it is not. The env raises ResetNeeded itself, and the tests hold it to
        # check_env.
        order_enforce=False,
        disable_env_checker=True,
    )
