"""TrainLoop-JEL-v0: learning rate and weight decay of a small run, one decision per 50 steps.

Description:
    A transformer is trained on text for `num_steps` optimizer steps. Every `interval` steps the
    controller sees the progress of the run. It sets multipliers of the base learning rate and the
    base weight decay, which hold until the next decision. The task is that of "Just Enough
    Learning" (Lee & Ndubuaku 2026), sections 3 and 4.

Action Space:
    `Box(-1, 1, (A,), float32)`. Column u sets a multiplier exp(ln 100 u) in [0.01, 100] of the base
    value, by default 1e-3 for the learning rate and 1e-2 for the weight decay. 0 is neutral.
    Numbers beyond [-1, 1] are clipped.

    | channels        | A | columns                                                  |
    |-----------------|---|----------------------------------------------------------|
    | `shared`        | 2 | lr, weight_decay                                         |
    | `per_optimizer` | 4 | lr/adamw, lr/muon, weight_decay/adamw, weight_decay/muon |

    `per_optimizer` has two columns for each optimizer that `optimizer` combines: 4 for the default,
    2 for `adamw`. `channels` also takes a list of channels (see `hpenv.envs.cell`).

Observation Space:
    `Box(low, high, (F,), float32)`. `hpenv.telemetry.features.FEATURES` has bounds and units.

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
    [nats per token]. The rewards of an episode add up to L0 - LT. A run that diverges loses the
    reward that it had earned, and 1. `reward` maps terms of `hpenv.telemetry.rewards.REWARD_TERMS`
    to weights, by default `{"progress": 1.0, "divergence": 1.0}`. The penalties of section 3.4 are
    the terms `gradient_norm`, the norm of the window's last gradient, and `smoothness`, the squared
    change of the action.

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
    |                       | `hpenv.plant.protocol.DIVERGENCE_REASONS`                            |
    | `panel/<cell>`        | value of each cell in the window                                     |
    | `gradient_norm`       | L2 norm of the window's last gradient, 0 at reset                    |
    | `reward_terms/<term>` | each measured term without its weight, 0 at reset                    |
    | `held_out`            | held-out score at the end of the run, with `evaluate_at_end=True`. 0 |
    |                       | before the end, and if the TimeLimit of                              |
    |                       | `gym.make(max_episode_steps=...)` ends the run                       |

    `env.unwrapped.corpus_digest` is the sha256 of the text.

Arguments:
    The fields of `hpenv.envs.spec.Episode` and of `hpenv.pretraining.config.PretrainingConfig`,
    whose `lr_schedule` is given as `schedule`. Each is a keyword argument of `gym.make` and
    `gym.make_vec`. The defaults that belong to the id are in `SPEC`.

    With `mapping="move"` an action is a bounded change of the positions, and 0 holds them (see
    `hpenv.envs.adaptive`).

    `schedule` and `weight_decay_schedule` map the step to a multiplier of the base rate, over the
    `num_steps` of a run:

    | form                                 | example                                               |
    |--------------------------------------|-------------------------------------------------------|
    | a key of                             | `"none"`, `"cosine"`, `"warmup_flat_warmdown"`,       |
    | `hpenv.optim.schedules.SCHEDULES`    | `"linear_decay"`                                      |
    | a mapping with such a name           | `{"name": "cosine", "warmup_steps": 20,               |
    |                                      | "final_fraction": 0.1}`                               |
    | a schedule of                        | `Cosine(561, warmup_steps=20)`                        |
    | `hpenv.optim.schedules`              |                                                       |
    | a function of an array of steps      | `lambda steps: 1 / np.sqrt(1 + steps)`                |
    | a mapping with one for each group    | `{"embedding": "none", "matrix": "cosine",            |
    |                                      | "unembedding": "none"}`                               |

    The first two are text, and so survive `EnvSpec.to_json`, YAML and a command line. A function is
    evaluated at every step. Its values are used in training, and a snapshot must match them.

Version History:
    v0: first version.
"""

from __future__ import annotations

from hpenv.envs.spec import Episode, TrainLoopSpec, factories
from hpenv.pretraining.plant import PretrainingPlant

ID = "TrainLoop-JEL-v0"
_LOSSES = ("train_loss", "probe_loss", "probe_loss_change")
SPEC = TrainLoopSpec(
    ID,
    PretrainingPlant,
    Episode(
        num_steps=561,  # (JEL, table 2)
        interval=50,  # (JEL, table 2)
        channels="shared",
        observation="progress",
        reward={"progress": 1.0, "divergence": 1.0},
        schedule="warmup_flat_warmdown",
    ),
    channel_sets={
        "shared": (("lr", "run"), ("weight_decay", "run")),
        "per_optimizer": (("lr", "optimizer"), ("weight_decay", "optimizer")),
    },
    observations={
        "progress": ("progress",),
        "loss": ("progress", *_LOSSES),
        "gradient": ("progress", "gradient_norm"),
        "momentum": ("progress", "momentum_norm"),
        "full": ("progress", *_LOSSES, "gradient_norm", "momentum_norm", "position"),
    },
)
make_env, make_vector_env = factories(SPEC)
