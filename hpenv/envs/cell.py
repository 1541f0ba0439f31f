"""TrainLoop-Cell-v0: many channels of a small run, one number per layer or tensor, every step.

Description:
    A transformer is trained on text for `num_steps` optimizer steps. Before every step the
    controller sees measurements of the run. It then moves one cell per layer, or tensor, of every
    channel in `channels`: learning rates, gradient scales, gains and temperatures of the forward
    pass, weight decay, constants of the optimizer, and the route of the gradient. Cells and
    features are numbered, and nothing else identifies a layer. The task is that of "Reward-Driven
    Training Control" (the REINFORCE Sidecar), section 2, in which a controller learns within the
    single run that it controls.

Action Space:
    `Box(-1, 1, (A + num_registers,), float32)`: by default, `foundational` with 8 registers, of
    shape (98,). Column u sets a cell's value. 0 is neutral: with all cells at 0 the run trains as
    without them, bit for bit. `hpenv.channels.CHANNELS` has bounds and units. The last
    `num_registers` columns, register/0 and on, move nothing. Each is added to an accumulator r <-
    0.9 r + 0.1 u that is observed.

    `channels` is one of the channel sets below, a list of channels, or a mapping name -> scope. An
    entry of a list is a name or a pair (name, scope). A name alone has the scope that it has in
    `full`. Among the other channels, grad_noise then has the scope run, and the rest their finest
    scope. `channels="weight_decay"` is the channel set: `foundational` plus that channel.
    `channels=["weight_decay"]` is that channel alone. A is for the `cell11` preset with its 11
    layers, without registers.

    | channels         | A   | channel/scope                                                       |
    |------------------|-----|---------------------------------------------------------------------|
    | `foundational`   | 90  | lr/layer, grad_scale/layer, attention_temperature/layer,            |
    |                  |     | attention_gain/layer, feed_forward_gain/layer, residual_gain/layer, |
    |                  |     | state_norm_cap/layer, dropout/layer, embedding_gain/run,            |
    |                  |     | logit_softcap/run                                                   |
    | `weight_decay`   | 167 | those of `foundational`, weight_decay/tensor                        |
    | `layer_lr`       | 11  | lr/layer                                                            |
    | `optimizer`      | 34  | beta1/layer, beta2/layer, eps/layer, grad_clip/run                  |
    | `grad_skip`      | 101 | those of `foundational`, grad_skip/layer                            |
    | `grad_gate`      | 101 | those of `foundational`, grad_gate/layer                            |
    | `grad_truncate`  | 101 | those of `foundational`, grad_truncate/layer                        |
    | `momentum_blend` | 101 | those of `foundational`, momentum_blend/layer                       |
    | `full`           | 300 | lr/tensor, grad_scale/layer, attention_temperature/layer,           |
    |                  |     | attention_gain/layer, feed_forward_gain/layer, residual_gain/layer, |
    |                  |     | state_norm_cap/layer, dropout/layer, embedding_gain/run,            |
    |                  |     | logit_softcap/run, weight_decay/tensor, those of `optimizer`,       |
    |                  |     | grad_skip/layer, grad_gate/layer, grad_truncate/layer               |

    Two channels can rotate or amplify a gradient: `momentum_blend`, and `grad_noise`, which is in
    no channel set. The channels of `optimizer`, which `full` contains, are for AdamW. Without
    channels and registers the action is empty: a plain run. Numbers beyond [-1, 1] are clipped.

Observation Space:
    `Box(low, high, (F,), float32)` of one of these observations, or of a list of features that
    includes `progress`. `hpenv.telemetry.FEATURES` has bounds and units. F is for `cell11` with
    `foundational` and 8 registers. `<layer>` and `<register>` count from 0.

    | observation     | F   | columns                                                              |
    |-----------------|-----|----------------------------------------------------------------------|
    | `progress`      | 1   | progress                                                             |
    | `loss`          | 5   | progress, train_loss, loss_slope, loss_curvature, loss_ema_deviation |
    | `gradient`      | 24  | progress, gradient_norm, layer_gradient_norm/<layer>,                |
    |                 |     | layer_gradient_max/<layer>                                           |
    | `full`          | 69  | those of `loss`, gradient_norm, layer_gradient_norm/<layer>,         |
    |                 |     | layer_gradient_max/<layer>, layer_activation_mean/<layer>,           |
    |                 |     | layer_activation_variance/<layer>, layer_saturation/<layer>,         |
    |                 |     | registers/<register>                                                 |
    | `full_position` | 159 | those of `full`, position/<cell>                                     |

Rewards:
    The sum of the terms of `hpenv.rewards.REWARD_TERMS`, weighted by `reward`. By default these are
    the decrease of the training loss since the previous decision [nats per token], which is 0 at
    the first decision, and -1 for a divergence. A run that diverges also pays back its gain so far.
    It is never refunded a loss. The training loss of a step is measured on its batch before the
    update. So the effect of an action on the weights is rewarded one decision later. Columns that
    the forward pass reads (`action_immediate`) also change the loss of the same step. The probe is
    measured only if a term or a feature needs it.

Starting State:
    New weights and a new data order, drawn from the seed. Every cell is at neutral, every register
    at 0.

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
    See `CellConfig`. Each field is a keyword argument of `gym.make` and `gym.make_vec`.
    `hpenv.envs.jel` lists the forms of `schedule` and `weight_decay_schedule`.

Version History:
    v0: first version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gymnasium.vector import AutoresetMode

from hpenv.configuration import PerGroup, PretrainingConfig
from hpenv.env import TrainLoopEnv, TrainLoopVectorEnv
from hpenv.envs import arguments as shared
from hpenv.envs.arguments import Channels
from hpenv.isolation import isolated
from hpenv.pretraining import PretrainingPlant
from hpenv.render import renders
from hpenv.rewards import check_weights
from hpenv.schedules import Schedule
from hpenv.telemetry import FEATURES, readable
from hpenv.values import set_python_fields

ID = "TrainLoop-Cell-v0"

FOUNDATIONAL: Channels = (
    ("lr", "layer"),
    ("grad_scale", "layer"),
    ("attention_temperature", "layer"),
    ("attention_gain", "layer"),
    ("feed_forward_gain", "layer"),
    ("residual_gain", "layer"),
    ("state_norm_cap", "layer"),
    ("dropout", "layer"),
    ("embedding_gain", "run"),
    ("logit_softcap", "run"),
)
OPTIMIZER: Channels = (
    ("beta1", "layer"),
    ("beta2", "layer"),
    ("eps", "layer"),
    ("grad_clip", "run"),
)
SAFE_BACKWARD: Channels = (
    ("grad_skip", "layer"),
    ("grad_gate", "layer"),
    ("grad_truncate", "layer"),
)
FULL: Channels = (
    ("lr", "tensor"),
    *FOUNDATIONAL[1:],
    ("weight_decay", "tensor"),
    *OPTIMIZER,
    *SAFE_BACKWARD,
)
SURFACES: dict[str, Channels] = {
    "foundational": FOUNDATIONAL,
    "weight_decay": (*FOUNDATIONAL, ("weight_decay", "tensor")),
    "layer_lr": (("lr", "layer"),),
    "optimizer": OPTIMIZER,
    "grad_skip": (*FOUNDATIONAL, ("grad_skip", "layer")),
    "grad_gate": (*FOUNDATIONAL, ("grad_gate", "layer")),
    "grad_truncate": (*FOUNDATIONAL, ("grad_truncate", "layer")),
    "momentum_blend": (*FOUNDATIONAL, ("momentum_blend", "layer")),
    "full": FULL,
}
#: Scopes of channels that are given by name alone. A channel that is not listed gets its finest
#: scope.
USUAL_SCOPES: dict[str, str] = {"grad_noise": "run"} | dict(FULL)

_LAYERS = ("layer_gradient_norm", "layer_gradient_max")
_ACTIVATIONS = ("layer_activation_mean", "layer_activation_variance", "layer_saturation")
_LOSS = ("progress", "train_loss", "loss_slope", "loss_curvature", "loss_ema_deviation")
_FULL = (*_LOSS, "gradient_norm", *_LAYERS, *_ACTIVATIONS, "registers")
OBSERVATIONS: dict[str, tuple[str, ...]] = {
    "progress": ("progress",),
    "loss": _LOSS,
    "gradient": ("progress", "gradient_norm", *_LAYERS),
    "full": _FULL,
    "full_position": (*_FULL, "position"),
}


@dataclass(frozen=True)
class CellConfig:
    """Arguments of TrainLoop-Cell-v0."""

    preset: str = "cell11"  # key of hpenv.model.PRESETS
    data: str = "stdlib"  # `stdlib`, `synthetic`, a path, or `hf:<name>`
    tokenizer: str = "bytes"  # `bytes`, `bpe:<vocabulary>`, or a path of a tokenizers file
    num_steps: int = 3000  # of an episode [steps]
    interval: int = 1  # steps per decision [steps] (Reward-Driven Training Control, section 2.1)
    batch_tokens: int = 256  # of one step [tokens]
    sequence_length: int = 64  # [tokens]
    # key of hpenv.optimizers.OPTIMIZERS (Reward-Driven Training Control, section 3)
    optimizer: str = "adamw"
    # one rate, or group -> rate for `embedding`, `matrix`, `unembedding`, and `scalar` if the preset
    # has it
    base_lr: PerGroup = 1e-3
    base_weight_decay: PerGroup = 1e-2  # one rate, or group -> rate
    # of the learning rate: a key of hpenv.schedules.SCHEDULES, a mapping, a function, or group ->
    # one of these
    schedule: str | Schedule | Mapping[str, Any] = "none"
    # of the weight decay, in the forms of `schedule`
    weight_decay_schedule: str | Schedule | Mapping[str, Any] = "none"
    # key of SURFACES, a list of names or (name, scope) pairs, or a mapping name -> scope
    channels: str | Sequence[str | tuple[str, str]] | Mapping[str, str] = "foundational"
    # key of OBSERVATIONS, or a list of keys of hpenv.telemetry.FEATURES
    observation: str | Sequence[str] = "full"
    # key of hpenv.rewards.REWARD_TERMS -> weight
    reward: Mapping[str, float] = field(
        default_factory=lambda: {"loss_change": 1.0, "divergence": 1.0}
    )
    num_registers: int = 8  # accumulators that the controller writes and observes
    register_leak: float = 0.9  # fraction of a register that a decision keeps [1]
    seed_mode: str = "independent"  # or `grouped`: same weights and data order for all rows
    # True puts the held-out score of a finished run into its last info, as `held_out`
    evaluate_at_end: bool = False
    num_probe_batches: int = 4  # fixed batches of batch_tokens, if a term or a feature needs them
    eval_tokens: int = 16_384  # of the validation slice, or the whole slice, for evaluate()
    device: str = "cpu"
    dtype: str = "float32"  # or `bfloat16`, of the forward and backward pass
    compile: bool = False  # torch.compile the loss

    def __post_init__(self) -> None:
        """Checks the arguments against the tables above.

        Raises:
            ValueError: naming the given and the accepted values.
        """
        set_python_fields(self)
        self.features()
        shared.check_episode(self.num_steps, self.interval)
        self.channel_pairs()
        shared.check_reward(self.reward)
        check_weights(self.reward, PretrainingPlant.gauge_names)
        self.plant_config()

    def features(self) -> tuple[str, ...]:
        """Returns the observed features.

        Raises:
            ValueError: for an unknown name of an observation or a feature, or a feature that is
                named twice.
        """
        accepted = readable(FEATURES, PretrainingPlant.gauge_names, PretrainingPlant.all_tiers)
        return shared.features(self.observation, OBSERVATIONS, accepted)

    def channel_pairs(self) -> Channels:
        """Returns the channels with their scopes.

        Raises:
            ValueError: for an unknown channel set or channel, or something that is neither a name
                nor a pair.
        """
        return shared.channel_pairs(self.channels, SURFACES, USUAL_SCOPES, PretrainingPlant.kind)

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
    """Builds a population: `gym.make_vec("TrainLoop-Cell-v0", num_envs=N)`."""
    config = CellConfig(**shared.check_arguments(arguments, CellConfig, ID))
    return TrainLoopVectorEnv(
        PretrainingPlant(config.plant_config(), num_envs, config.channel_pairs()),
        features=config.features(),
        reward=config.reward,
        interval=config.interval,
        horizon=config.num_steps,
        num_registers=config.num_registers,
        register_leak=config.register_leak,
        seed_mode=config.seed_mode,
        autoreset_mode=autoreset_mode,
        render_mode=render_mode,
        evaluate_at_end=config.evaluate_at_end,
        max_episode_steps=max_episode_steps,
    )


@renders
@isolated
def make_env(*, render_mode: str | None = None, **arguments: Any) -> TrainLoopEnv:
    """Builds one run: `gym.make("TrainLoop-Cell-v0")`."""
    checked = shared.check_arguments(arguments, CellConfig, ID)
    return TrainLoopEnv(
        make_vector_env(1, autoreset_mode="DISABLED", render_mode=render_mode, **checked)
    )
