"""TrainLoop-JEL-v0: learning rate and weight decay of a small run, one decision per 50 steps.

Description:
    A transformer is trained on text for `num_steps` optimizer steps. Every `interval` steps the
    controller sees the progress of the run. It sets multipliers of the base learning rate and the
    base weight decay, which hold until the next decision. The task is that of "Just Enough
    Learning" (Lee & Ndubuaku 2026), sections 3 and 4.

Action Space:
    `Box(-1, 1, (A,), float32)`. Column u sets a multiplier exp(ln 100 u) in [0.01, 100]. 0 is
    neutral.

    | actions         | A | columns                                                  |
    |-----------------|---|----------------------------------------------------------|
    | `shared`        | 2 | lr, weight_decay                                         |
    | `per_optimizer` | 4 | lr/adamw, lr/muon, weight_decay/adamw, weight_decay/muon |

    `per_optimizer` has two columns for each optimizer that `optimizer` combines: 4 for the default,
    2 for `adamw`.

Observation Space:
    `Box(low, high, (F,), float32)`. `hpenv.telemetry.FEATURES` has bounds and units.

    | observation | F (shared) | columns                                                           |
    |-------------|------------|-------------------------------------------------------------------|
    | `progress`  | 1          | progress                                                          |
    | `loss`      | 4          | progress, train_loss, probe_loss, probe_loss_change               |
    | `gradient`  | 2          | progress, gradient_norm                                           |
    | `momentum`  | 2          | progress, momentum_norm                                           |
    | `full`      | 8          | those of `loss`, gradient_norm, momentum_norm, one                |
    |             |            | position/<column> each                                            |

Rewards:
    The decrease of the loss on 4 fixed probe batches over the window that the action controlled
    [nats per token]. The rewards of an episode add up to L0 - LT. Subtracted are
    `penalties["gradient_norm"]` times the norm of the window's last gradient, and
    `penalties["smoothness"]` times the squared change of the action. A run that diverges loses the
    reward that it had earned, and 1.

Starting State:
    New weights and a new data order, drawn from the seed. The panel is at neutral.

Episode End:
    `terminated` when the budget of `num_steps` is spent, or when the run diverges (loss or gradient
    not finite, or loss above 3 ln V, see `info["divergence"]`). Never `truncated`.

Info:
    One number per key, never NaN, with the same keys at reset and at every step. In a vector env
    each is an array (N,) with a mask `_<key>` of the rows that have a measurement. Unmeasured
    values are 0.

    | key                   | number                                                               |
    |-----------------------|----------------------------------------------------------------------|
    | `step`                | optimizer steps that the run has taken [steps]                       |
    | `train_loss`          | mean training loss of the window, or the probe loss at reset [nats   |
    |                       | per token]                                                           |
    | `probe_loss`          | loss on the probe at the end of the window, if a term or feature     |
    |                       | reads it [nats per token]                                            |
    | `divergence`          | 0, or the reason for the divergence: an index into                   |
    |                       | `hpenv.plant.DIVERGENCE_REASONS`                                     |
    | `panel/<cell>`        | value of each cell in the window                                     |
    | `gradient_norm`       | L2 norm of the window's last gradient, 0 at reset                    |
    | `reward_terms/<term>` | each measured term without its weight, 0 at reset                    |
    | `held_out`            | held-out score at the end of the run, with `evaluate_at_end=True`. 0 |
    |                       | before the end, and if the TimeLimit of                              |
    |                       | `gym.make(max_episode_steps=...)` ends the run                       |

    `env.unwrapped.corpus_digest` is the sha256 of the text.

Arguments:
    See `JELConfig`. Each field is a keyword argument of `gym.make` and `gym.make_vec`.

    `schedule` and `weight_decay_schedule` map the step to a multiplier of the base rate, over the
    `num_steps` of a run:

    | form                                 | example                                               |
    |--------------------------------------|-------------------------------------------------------|
    | a key of `hpenv.schedules.SCHEDULES` | `"none"`, `"cosine"`, `"warmup_flat_warmdown"`,       |
    |                                      | `"linear_decay"`                                      |
    | a mapping with such a name           | `{"name": "cosine", "warmup_steps": 20,               |
    |                                      | "final_fraction": 0.1}`                               |
    | a schedule of `hpenv.schedules`      | `Cosine(561, warmup_steps=20)`                        |
    | a function of an array of steps      | `lambda steps: 1 / np.sqrt(1 + steps)`                |
    | a mapping with one for each group    | `{"embedding": "none", "matrix": "cosine",            |
    |                                      | "unembedding": "none"}`                               |

    The first two are text, and so survive `EnvSpec.to_json`, YAML and a command line. A function is
    evaluated at every step. Its values are used in training, and a snapshot must match them.

Version History:
    v0: first version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gymnasium.vector import AutoresetMode

from hpenv.configuration import PerGroup, PretrainingConfig
from hpenv.env import TrainLoopEnv, TrainLoopVectorEnv
from hpenv.envs import arguments as shared
from hpenv.isolation import isolated
from hpenv.pretraining import PretrainingPlant
from hpenv.render import renders
from hpenv.schedules import Schedule
from hpenv.values import set_python_fields

ID = "TrainLoop-JEL-v0"
ACTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "shared": (("lr", "run"), ("weight_decay", "run")),
    "per_optimizer": (("lr", "optimizer"), ("weight_decay", "optimizer")),
}
OBSERVATIONS: dict[str, tuple[str, ...]] = {
    "progress": ("progress",),
    "loss": ("progress", "train_loss", "probe_loss", "probe_loss_change"),
    "gradient": ("progress", "gradient_norm"),
    "momentum": ("progress", "momentum_norm"),
    "full": (
        "progress",
        "train_loss",
        "probe_loss",
        "probe_loss_change",
        "gradient_norm",
        "momentum_norm",
        "position",
    ),
}
PENALTIES = ("gradient_norm", "smoothness")


@dataclass(frozen=True)
class JELConfig:
    """Arguments of TrainLoop-JEL-v0."""

    preset: str = "nano"  # key of hpenv.model.PRESETS
    data: str = "stdlib"  # `stdlib`, `synthetic`, a path, or `hf:<name>`
    tokenizer: str = "bytes"  # `bytes`, `bpe:<vocabulary>`, or a path of a tokenizers file
    num_steps: int = 561  # of an episode [steps] (JEL, table 2)
    interval: int = 50  # steps per decision [steps] (JEL, table 2)
    batch_tokens: int = 512  # of one step [tokens]
    sequence_length: int = 64  # [tokens]
    optimizer: str = "adamw_muon"  # key of hpenv.optimizers.OPTIMIZERS
    # one rate, or group -> rate for `embedding`, `matrix`, `unembedding`, and `scalar` if the preset
    # has it
    base_lr: PerGroup = 1e-3  # (JEL, section 4.1)
    base_weight_decay: PerGroup = 1e-2  # one rate, or group -> rate (JEL, section 4.1)
    # of the learning rate: a key of hpenv.schedules.SCHEDULES, a mapping, a function, or group ->
    # one of these
    schedule: str | Schedule | Mapping[str, Any] = "warmup_flat_warmdown"
    # of the weight decay, in the forms of `schedule`
    weight_decay_schedule: str | Schedule | Mapping[str, Any] = "none"
    observation: str = "progress"  # key of OBSERVATIONS
    actions: str = "shared"  # key of ACTIONS
    # gradient_norm, smoothness -> weight (JEL, section 3.4)
    penalties: Mapping[str, float] = field(default_factory=dict)
    seed_mode: str = "independent"  # or `grouped`: same weights and data order for all rows
    # True puts the held-out score of a finished run into its last info, as `held_out`
    evaluate_at_end: bool = False
    eval_tokens: int = 65_536  # of the validation slice, or the whole slice, for evaluate()
    device: str = "cpu"
    dtype: str = "float32"  # or `bfloat16`, of the forward and backward pass
    compile: bool = False  # torch.compile the loss

    def __post_init__(self) -> None:
        """Checks the arguments against the tables above.

        Raises:
            ValueError: naming the given and the accepted values.
        """
        set_python_fields(self)
        shared.check_key("observation", self.observation, OBSERVATIONS)
        shared.check_key("actions", self.actions, ACTIONS)
        shared.check_episode(self.num_steps, self.interval)

        if not isinstance(self.penalties, Mapping):
            raise ValueError(
                f"penalties must be a mapping of some of {list(PENALTIES)} to weights, as "
                f"{{'smoothness': 0.1}}; got {self.penalties!r}"
            )
        unknown = sorted(set(self.penalties) - set(PENALTIES))
        if unknown:
            raise ValueError(f"unknown penalties {unknown}; expected some of {list(PENALTIES)}")

        self.plant_config()

    def plant_config(self) -> PretrainingConfig:
        """Returns the plant's configuration."""
        return shared.plant_config(self)


@renders
@isolated
def make_vector_env(
    num_envs: int = 1,
    *,
    autoreset_mode: str | AutoresetMode = "NEXT_STEP",
    render_mode: str | None = None,
    max_episode_steps: int | None = None,
    **arguments: Any,
) -> TrainLoopVectorEnv:
    """Builds a population: `gym.make_vec("TrainLoop-JEL-v0", num_envs=N)`."""
    config = JELConfig(**shared.check_arguments(arguments, JELConfig, ID))
    return TrainLoopVectorEnv(
        PretrainingPlant(config.plant_config(), num_envs, ACTIONS[config.actions]),
        features=OBSERVATIONS[config.observation],
        reward={"progress": 1.0, "divergence": 1.0} | dict(config.penalties),
        interval=config.interval,
        horizon=config.num_steps,
        seed_mode=config.seed_mode,
        autoreset_mode=autoreset_mode,
        render_mode=render_mode,
        evaluate_at_end=config.evaluate_at_end,
        max_episode_steps=max_episode_steps,
    )


@renders
@isolated
def make_env(*, render_mode: str | None = None, **arguments: Any) -> TrainLoopEnv:
    """Builds one run: `gym.make("TrainLoop-JEL-v0")`."""
    checked = shared.check_arguments(arguments, JELConfig, ID)
    return TrainLoopEnv(
        make_vector_env(1, autoreset_mode="DISABLED", render_mode=render_mode, **checked)
    )
