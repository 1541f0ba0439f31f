"""Training a transformer as a Gymnasium environment. Importing this only registers the ids.

The docstring of an environment's module is its manual, as in `help("hpenv.envs.jel")`:
`hpenv.envs.jel` for TrainLoop-JEL-v0, `hpenv.envs.cell` for TrainLoop-Cell-v0,
`hpenv.envs.adaptive` for TrainLoop-Adaptive-v0,
`hpenv.envs.grpo_projection` for TrainLoop-GRPOProjection-v0.
"""

from gymnasium.envs.registration import register

for _id, _module in (
    ("TrainLoop-JEL-v0", "jel"),
    ("TrainLoop-Cell-v0", "cell"),
    ("TrainLoop-Adaptive-v0", "adaptive"),
    ("TrainLoop-GRPOProjection-v0", "grpo_projection"),
):
    register(
        id=_id,
        entry_point=f"hpenv.envs.{_module}:make_env",
        vector_entry_point=f"hpenv.envs.{_module}:make_vector_env",
        # Both wrappers of Gymnasium treat a step without a reset as a mistake. After restore() it
        # is none. The env raises ResetNeeded itself, and the tests run check_env.
        order_enforce=False,
        disable_env_checker=True,
    )
