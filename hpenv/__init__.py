"""Training a transformer as a Gymnasium environment; importing this registers the ids and nothing else."""

from gymnasium.envs.registration import register

register(
    id="TrainLoop-JEL-v0",
    entry_point="hpenv.envs.jel:make_env",
    vector_entry_point="hpenv.envs.jel:make_vector_env",
)
register(
    id="TrainLoop-Cell-v0",
    entry_point="hpenv.envs.cell:make_env",
    vector_entry_point="hpenv.envs.cell:make_vector_env",
)
