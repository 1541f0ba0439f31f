"""TrainLoop-Cell-v0: many dials of one small pretraining run, one number per (layer or tensor,
channel), every step.

Description:
    A transformer is trained on text for `num_steps` optimizer steps. Before every step the
    controller sees gauges of the run and moves a cell for every layer, or tensor, of every channel
    it was given: learning rates, gradient scales, gains and temperatures of the forward pass,
    weight decay, the optimizer's own constants, the route of the gradient. Cells and gauges are
    indexed; nothing says which layer is which. The task of "Reward-Driven Training Control" (the
    REINFORCE Sidecar), section 2, where one controller learns within the one run that it controls.

Action Space:
    `Box(-1, 1, (A + num_registers,), float32)`; by default, `foundational` with 8 registers, of
    shape (98,). Column u sets a cell's value; 0 is neutral, and a run whose cells all are trains
    bit for bit as it would without them. `hpenv.channels.CHANNELS` has bounds and units. The last
    `num_registers` columns, register/0 and on, move nothing: each is added to an accumulator r <-
    0.9 r + 0.1 u that is observed.

    `channels` is one of the surfaces below; or a list of channels, each by its name alone (then at
    the scope it has in `full`; else grad_noise at run, and any other at its finest) or as a pair
    (name, scope); or a mapping name -> scope. `channels="weight_decay"`, a surface, is
    `foundational` plus that channel; `channels=["weight_decay"]` is that channel alone. A is that
    of the `cell11` preset with its 11 layers, without the registers.

    | channels         | A   | channel/scope                                                                      |
    |------------------|-----|------------------------------------------------------------------------------------|
    | `foundational`   | 90  | lr/layer, grad_scale/layer, attention_temperature/layer, attention_gain/layer,     |
    |                  |     | feed_forward_gain/layer, residual_gain/layer, state_norm_cap/layer, dropout/layer, |
    |                  |     | embedding_gain/run, logit_softcap/run                                              |
    | `weight_decay`   | 167 | those of `foundational`, weight_decay/tensor                                       |
    | `layer_lr`       | 11  | lr/layer                                                                           |
    | `optimizer`      | 34  | beta1/layer, beta2/layer, eps/layer, grad_clip/run                                 |
    | `grad_skip`      | 101 | those of `foundational`, grad_skip/layer                                           |
    | `grad_gate`      | 101 | those of `foundational`, grad_gate/layer                                           |
    | `grad_truncate`  | 101 | those of `foundational`, grad_truncate/layer                                       |
    | `momentum_blend` | 101 | those of `foundational`, momentum_blend/layer                                      |
    | `full`           | 300 | lr/tensor, grad_scale/layer, attention_temperature/layer, attention_gain/layer,    |
    |                  |     | feed_forward_gain/layer, residual_gain/layer, state_norm_cap/layer, dropout/layer, |
    |                  |     | embedding_gain/run, logit_softcap/run, weight_decay/tensor, those of `optimizer`,  |
    |                  |     | grad_skip/layer, grad_gate/layer, grad_truncate/layer                              |

    Two channels can rotate or amplify a gradient: `momentum_blend`, and `grad_noise`, which no
    surface has. Those of `optimizer`, which `full` holds, are AdamW's. Without channels and
    registers the action is empty: a plain run. Numbers beyond [-1, 1] are clipped.

Observation Space:
    `Box(low, high, (F,), float32)` of one of these observations, or of features by name, `progress`
    among them; see `hpenv.telemetry.FEATURES` for bounds and units. F is that of `cell11` with the
    `foundational` surface and 8 registers. `<layer>` counts the layers, `<register>` the registers,
    from 0.

    | observation     | F   | columns                                                                           |
    |-----------------|-----|-----------------------------------------------------------------------------------|
    | `progress`      | 1   | progress                                                                          |
    | `loss`          | 5   | progress, train_loss, loss_slope, loss_curvature, loss_ema_deviation              |
    | `gradient`      | 24  | progress, gradient_norm, layer_gradient_norm/<layer>, layer_gradient_max/<layer>  |
    | `full`          | 69  | those of `loss`, gradient_norm, layer_gradient_norm/<layer>,                      |
    |                 |     | layer_gradient_max/<layer>, layer_activation_mean/<layer>,                        |
    |                 |     | layer_activation_variance/<layer>, layer_saturation/<layer>, registers/<register> |
    | `full_position` | 159 | those of `full`, position/<cell>                                                  |

Rewards:
    The sum of the terms of `hpenv.rewards.REWARD_TERMS`, weighted by `reward`. By default the
    decrease of the training loss since the decision before [nats per token], 0 at the first, and -1
    for a divergence. A run that diverges pays back what it had gained, and is never refunded what
    it had lost. A training loss is that of the next batch before its update, so that what an action
    does to the weights is rewarded one decision later; columns that the forward pass reads
    (`action_immediate`) are in the loss of their own step as well. The probe is measured only if a
    term or a feature needs it.

Starting State:
    Fresh weights and a fresh data order, drawn from the seed; every cell at neutral, every register
    0.

Episode End:
    `terminated` when the budget of `num_steps` is spent, or when the run diverges (loss or gradient
    not finite, or loss above 3 ln V; `info["divergence"]`). Never `truncated`.

Info:
    A number per key, never NaN, and the same keys at reset and at every step. In a vector env each
    is an array (N,), beside a mask `_<key>` of the rows it was measured of. What is not measured of
    a row is 0.

    | key                   | number                                                                          |
    |-----------------------|---------------------------------------------------------------------------------|
    | `step`                | optimizer steps the run has taken [steps]                                       |
    | `train_loss`          | mean training loss of the window; at reset the probe loss [nats per token]      |
    | `probe_loss`          | loss on the probe at the end of the window, if a term or feature reads it; the  |
    |                       | same unit                                                                       |
    | `divergence`          | 0, or why the run diverged: an index of `hpenv.plant.DIVERGENCE_REASONS`        |
    | `panel/<cell>`        | value of each cell in the window                                                |
    | `gradient_norm`       | L2 norm of the window's last gradient; 0 at reset                               |
    | `reward_terms/<term>` | each term that was measured, without its weight; 0 at reset                     |
    | `held_out`            | held-out score at the end of the run, with `evaluate_at_end=True`; 0 before     |
    |                       | it, and where the TimeLimit of `gym.make(max_episode_steps=...)` ends the run   |

    `env.unwrapped.corpus_digest` is the sha256 of the text.

Arguments:
    See `CellConfig`; each is a keyword argument of `gym.make` and `gym.make_vec`. `hpenv.envs.jel`
    has the forms of `schedule` and `weight_decay_schedule`.

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
#: Where a channel stands that is given by its name alone; one that is not listed, at its finest
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
    optimizer: str = (
        "adamw"  # key of hpenv.optimizers.OPTIMIZERS (Reward-Driven Training Control, section 3)
    )
    # uniform, or group -> rate for all of `embedding`, `matrix`, `unembedding`, and `scalar` if the
    # preset has any
    base_lr: PerGroup = 1e-3
    base_weight_decay: PerGroup = 1e-2  # uniform, or group -> rate
    # of the learning rate: a key of hpenv.schedules.SCHEDULES, or a mapping, a function or group ->
    # one of these
    schedule: str | Schedule | Mapping[str, Any] = "none"
    weight_decay_schedule: str | Schedule | Mapping[str, Any] = (
        "none"  # of the weight decay; as `schedule`
    )
    # key of SURFACES; or a list of names or (name, scope) pairs; or a mapping name -> scope
    channels: str | Sequence[str | tuple[str, str]] | Mapping[str, str] = "foundational"
    observation: str | Sequence[str] = (
        "full"  # key of OBSERVATIONS, or a list of keys of hpenv.telemetry.FEATURES
    )
    reward: Mapping[str, float] = field(
        default_factory=lambda: {"loss_change": 1.0, "divergence": 1.0}
    )  # key of hpenv.rewards.REWARD_TERMS -> weight
    num_registers: int = 8  # accumulators of the controller's own
    register_leak: float = 0.9  # part of a register that a decision keeps [1]
    seed_mode: str = "independent"  # or `grouped`: same weights and data order for all rows
    evaluate_at_end: bool = (
        False  # put the held-out score of a finished run into its last info, as `held_out`
    )
    num_probe_batches: int = (
        4  # fixed batches of batch_tokens, where a term or a feature asks for them
    )
    eval_tokens: int = (
        16_384  # of the validation slice, or all that it has, for evaluate() [tokens]
    )
    device: str = "cpu"
    dtype: str = "float32"  # or `bfloat16`, of the forward and backward pass
    compile: bool = False  # torch.compile the loss

    def __post_init__(self) -> None:
        """Refuses what is not in the tables above.

        Raises:
            ValueError: naming what was given and what is accepted.
        """
        set_python_fields(self)
        self.features()
        shared.check_episode(self.num_steps, self.interval)
        self.channel_pairs()
        shared.check_reward(self.reward)
        check_weights(self.reward, PretrainingPlant.gauge_names)
        self.plant_config()

    def features(self) -> tuple[str, ...]:
        """What is observed.

        Raises:
            ValueError: for an unknown name of an observation or a feature, or a feature that is
                named twice.
        """
        accepted = readable(FEATURES, PretrainingPlant.gauge_names, PretrainingPlant.all_tiers)
        return shared.features(self.observation, OBSERVATIONS, accepted)

    def channel_pairs(self) -> Channels:
        """The channels with their scopes.

        Raises:
            ValueError: for an unknown surface or channel, or something that is neither a name nor a
                pair.
        """
        return shared.channel_pairs(self.channels, SURFACES, USUAL_SCOPES, PretrainingPlant.kind)

    def plant_config(self) -> PretrainingConfig:
        """What a run is."""
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
    """The population: `gym.make_vec("TrainLoop-Cell-v0", num_envs=N)`."""
    config = CellConfig(**shared.known(arguments, CellConfig, ID))
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
    """One run: `gym.make("TrainLoop-Cell-v0")`."""
    known = shared.known(arguments, CellConfig, ID)
    return TrainLoopEnv(
        make_vector_env(1, autoreset_mode="DISABLED", render_mode=render_mode, **known)
    )
