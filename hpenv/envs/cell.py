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
    without them, bit for bit. `hpenv.control.channels.CHANNELS` has bounds and units. The last
    `num_registers` columns, register/0 and on, move nothing. Each is added to an accumulator r <-
    0.9 r + 0.1 u that is observed.

    `channels` is one of the channel sets below, a list of channels, or a mapping name -> scope. An
    entry of a list is a name or a pair (name, scope). A name alone has the scope that it has in
    `full`. Among the other channels, those of noise and momentum then have the scope run, and the
    rest their finest scope. `channels="foundational_weight_decay"` is the channel set:
    `foundational` plus that channel. `channels=["weight_decay"]` is that channel alone. A is for
    the `cell11` preset with its 11 layers, without registers.

    | channels                      | A   | channel/scope                                          |
    |-------------------------------|-----|--------------------------------------------------------|
    | `foundational`                | 90  | lr/layer, grad_scale/layer,                            |
    |                               |     | attention_temperature/layer, attention_gain/layer,     |
    |                               |     | feed_forward_gain/layer, residual_gain/layer,          |
    |                               |     | state_norm_cap/layer, dropout/layer,                   |
    |                               |     | embedding_gain/run, logit_softcap/run                  |
    | `foundational_weight_decay`   | 167 | those of `foundational`, weight_decay/tensor           |
    | `layer_lr`                    | 11  | lr/layer                                               |
    | `optimizer`                   | 34  | beta1/layer, beta2/layer, eps/layer, grad_clip/run     |
    | `foundational_grad_skip`      | 101 | those of `foundational`, grad_skip/layer               |
    | `foundational_grad_gate`      | 101 | those of `foundational`, grad_gate/layer               |
    | `foundational_grad_truncate`  | 101 | those of `foundational`, grad_truncate/layer           |
    | `foundational_momentum_blend` | 101 | those of `foundational`, momentum_blend/layer          |
    | `full`                        | 300 | lr/tensor, grad_scale/layer,                           |
    |                               |     | attention_temperature/layer, attention_gain/layer,     |
    |                               |     | feed_forward_gain/layer, residual_gain/layer,          |
    |                               |     | state_norm_cap/layer, dropout/layer,                   |
    |                               |     | embedding_gain/run, logit_softcap/run,                 |
    |                               |     | weight_decay/tensor, those of `optimizer`,             |
    |                               |     | grad_skip/layer, grad_gate/layer, grad_truncate/layer  |

    Some channels can rotate or amplify a gradient, or move the weights at random: `momentum_blend`,
    and `grad_noise`, `exploration` and `weight_noise`, which are in no channel set. Neither is
    `momentum`, the odds of the momentum of any optimizer. The channels of `optimizer`, which
    `full` contains, are for AdamW. Without channels and registers the action is empty: a plain run.
    Numbers beyond [-1, 1] are clipped.

Observation Space:
    `Box(low, high, (F,), float32)` of one of these observations, or of a list of features that
    includes `progress`. `hpenv.telemetry.features.FEATURES` has bounds and units. F is for `cell11`
    with `foundational` and 8 registers. `<layer>` and `<register>` count from 0.

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
    The sum of the terms of `hpenv.telemetry.rewards.REWARD_TERMS`, weighted by `reward`. By default
    these are the decrease of the training loss since the previous decision [nats per token], which
    is 0 at the first decision, and -1 for a divergence. A run that diverges also pays back its gain
    so far. It is never refunded a loss. The training loss of a step is measured on its batch before
    the update. So the effect of an action on the weights is rewarded one decision later. Columns
    that the forward pass reads (`action_immediate`) also change the loss of the same step. The
    probe is measured only if a term or a feature needs it.

Starting State:
    New weights and a new data order, drawn from the seed. Every cell is at neutral, every register
    at 0.

Episode End:
    `terminated` when the budget of `num_steps` is spent, or when the run diverges (loss or gradient
    not finite, or loss above 3 ln V, see `info["divergence"]`). Never `truncated`.

Info:
    That of `hpenv.envs.jel`, except that `probe_loss` is there only if a term or feature reads it.

Arguments:
    Those of `hpenv.envs.jel`, with other defaults (see `SPEC`).

Version History:
    v0: first version.
"""

from __future__ import annotations

from hpenv.envs.spec import Episode, TrainLoopSpec, factories
from hpenv.pretraining.plant import PretrainingPlant

ID = "TrainLoop-Cell-v0"

_FORWARD = (
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
_FOUNDATIONAL = (("lr", "layer"), *_FORWARD)
_OPTIMIZER = (("beta1", "layer"), ("beta2", "layer"), ("eps", "layer"), ("grad_clip", "run"))
_SAFE_BACKWARD = (("grad_skip", "layer"), ("grad_gate", "layer"), ("grad_truncate", "layer"))
_TENSORS = (("lr", "tensor"), *_FORWARD, ("weight_decay", "tensor"))
_FULL = (*_TENSORS, *_OPTIMIZER, *_SAFE_BACKWARD)

_OF_THE_RUN = ("grad_noise", "exploration", "weight_noise", "momentum")

_LAYERS = ("layer_gradient_norm", "layer_gradient_max")
_ACTIVATIONS = ("layer_activation_mean", "layer_activation_variance", "layer_saturation")
_LOSS = ("progress", "train_loss", "loss_slope", "loss_curvature", "loss_ema_deviation")
_GAUGES = (*_LOSS, "gradient_norm", *_LAYERS, *_ACTIVATIONS, "registers")

SPEC = TrainLoopSpec(
    ID,
    PretrainingPlant,
    Episode(
        num_steps=3000,
        interval=1,  # (Reward-Driven Training Control, section 2.1)
        channels="foundational",
        observation="full",
        reward={"loss_change": 1.0, "divergence": 1.0},
        num_registers=8,
    ),
    channel_sets={
        "foundational": _FOUNDATIONAL,
        "foundational_weight_decay": (*_FOUNDATIONAL, ("weight_decay", "tensor")),
        "layer_lr": (("lr", "layer"),),
        "optimizer": _OPTIMIZER,
        "foundational_grad_skip": (*_FOUNDATIONAL, ("grad_skip", "layer")),
        "foundational_grad_gate": (*_FOUNDATIONAL, ("grad_gate", "layer")),
        "foundational_grad_truncate": (*_FOUNDATIONAL, ("grad_truncate", "layer")),
        "foundational_momentum_blend": (*_FOUNDATIONAL, ("momentum_blend", "layer")),
        "full": _FULL,
    },
    observations={
        "progress": ("progress",),
        "loss": _LOSS,
        "gradient": ("progress", "gradient_norm", *_LAYERS),
        "full": _GAUGES,
        "full_position": (*_GAUGES, "position"),
    },
    # (Reward-Driven Training Control, section 3: AdamW)
    defaults={
        "preset": "cell11",
        "optimizer": "adamw",
        "batch_tokens": 256,
        "eval_tokens": 16_384,
    },
    usual_scopes=dict.fromkeys(_OF_THE_RUN, "run") | dict(_FULL),
)
make_env, make_vector_env = factories(SPEC)
