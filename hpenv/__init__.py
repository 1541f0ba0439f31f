"""Training a transformer as a Gymnasium environment; importing this registers the ids and nothing else."""

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
        # Both of Gymnasium's wrappers take a step without a reset for a mistake, which after restore() it is not. The
        # env raises ResetNeeded itself, and the tests hold it to check_env.
        order_enforce=False,
        disable_env_checker=True,
    )
