"""TrainLoop-Adaptive-v0: rate, momentum and exploration noise of a small run, moved every 10 steps.

Description:
    A transformer is trained on text for `num_steps` optimizer steps. Every `interval` steps the
    controller sees trends of the loss, without its units, and moves the learning rate, the momentum
    and the noise that is added to the gradient. Each move is bounded. The task is that of
    "AdaptiveRL: a control-theoretic scheduler". The paper's control law is
    `hpenv.policies.control_law.AdaptiveRL`.

Action Space:
    `Box(-1, 1, (A,), float32)`. Column u is a move: the fraction of the largest change that a
    decision may make to the position of a cell. 0 holds the cell. At the start every cell is at
    neutral. Numbers beyond [-1, 1] are clipped, and so is the position that results.

    | channels           | A | columns                    |
    |--------------------|---|----------------------------|
    | `law`              | 3 | lr, momentum, exploration  |
    | `rate_only`        | 1 | lr                         |
    | `no_noise`         | 2 | lr, momentum               |
    | `law_weight_noise` | 3 | lr, momentum, weight_noise |

    | dial           | value                                         | largest move, as a factor |
    |----------------|-----------------------------------------------|---------------------------|
    | `lr`           | multiplier of the base rate, in [0.01, 100]   | 0.9 and 1.2               |
    | `momentum`     | multiplier of the odds m / (1 - m) of beta1,  | 0.8 and 1.25              |
    |                | in [1/30, 30]: 0.23 to 0.996 around 0.9       |                           |
    | `exploration`  | standard deviation of the noise, in root mean | 0.8 and 1.25              |
    |                | squares of the gradient: 0, or 0.01 to 0.2    |                           |
    | `weight_noise` | that of noise added to the weights at every   | 0.8 and 1.25              |
    |                | step, in theirs: 0, or 0.0005 to 0.01         |                           |

    All four move in the logarithm of their value. Noise is exactly off at its floor, where it
    starts, and a first move up takes it above the floor. `max_moves` gives other largest moves:
    channel -> (down, up) in units of the position, which
    `hpenv.control.moves.moves_of_factors("lr", 0.95, 1.05)` computes. With
    `mapping="position"` a column is the position itself, as in the other ids. `channels` also takes
    a list of channels (see `hpenv.envs.cell`).

Observation Space:
    `Box(low, high, (F,), float32)`. `hpenv.telemetry.features.FEATURES` has bounds and units, and
    `hpenv.telemetry.estimators` the formulas.

    | observation  | F (law) | columns                                                             |
    |--------------|---------|---------------------------------------------------------------------|
    | `estimators` | 8       | progress, loss_trend, reward_trend, loss_variance_ratio, plateau,   |
    |              |         | one position/<column> each                                          |
    | `progress`   | 1       | progress                                                            |
    | `full`       | 13      | those of `estimators`, train_loss, probe_loss, probe_loss_change,   |
    |              |         | gradient_norm, momentum_norm                                        |

    The estimators see the training loss of every step. `estimators="epochwise"` lets them see the
    mean of each window alone, with the paper's betas for epochs. A mapping sets single constants.

Rewards:
    The decrease of the loss on 4 fixed probe batches over the window that the action controlled
    [nats per token], and -1 for a divergence, as in `hpenv.envs.jel`. The reward r of the paper's
    estimators is another number: minus the training loss of a step.

Starting State:
    New weights and a new data order, drawn from the seed. The panel is at neutral.

Episode End:
    `terminated` when the budget of `num_steps` is spent, or when the run diverges (loss or gradient
    not finite, or loss above 3 ln V, see `info["divergence"]`). Never `truncated`.

Info:
    That of `hpenv.envs.jel`.

Arguments:
    Those of `hpenv.envs.jel`, with other defaults (see `SPEC`). The paper has two relations to a
    base schedule. `schedule="none"`, the default, replaces it: the controller's factor multiplies a
    constant rate. `schedule="cosine"`, with 20 steps of warmup, is modulated by the factor.

Version History:
    v0: first version.
"""

from __future__ import annotations

from hpenv.control.moves import moves_of_factors
from hpenv.envs.spec import Episode, TrainLoopSpec, factories
from hpenv.pretraining.plant import PretrainingPlant

ID = "TrainLoop-Adaptive-v0"
_LAW = (
    "progress",
    "loss_trend",
    "reward_trend",
    "loss_variance_ratio",
    "plateau",
    "position",
)
_LOSSES = ("train_loss", "probe_loss", "probe_loss_change")
_NO_NOISE = (("lr", "run"), ("momentum", "run"))

SPEC = TrainLoopSpec(
    ID,
    PretrainingPlant,
    Episode(
        num_steps=561,  # that of TrainLoop-JEL-v0, so that both have the same runs
        interval=10,  # (AdaptiveRL, section 6: K = 10 to 20)
        channels="law",
        observation="estimators",
        reward={"progress": 1.0, "divergence": 1.0},
        mapping="move",
        max_moves={
            "lr": moves_of_factors("lr", 0.9, 1.2),  # (AdaptiveRL, section 6)
            # Ours: at least twice as far as the law moves at the largest gains of the paper.
            "momentum": moves_of_factors("momentum", 0.8, 1.25),
            "exploration": moves_of_factors("exploration", 0.8, 1.25),
            "weight_noise": moves_of_factors("weight_noise", 0.8, 1.25),
        },
    ),
    channel_sets={
        "law": (*_NO_NOISE, ("exploration", "run")),
        "rate_only": (("lr", "run"),),
        "no_noise": _NO_NOISE,
        "law_weight_noise": (*_NO_NOISE, ("weight_noise", "run")),
    },
    observations={
        "estimators": _LAW,
        "progress": ("progress",),
        "full": (*_LAW, *_LOSSES, "gradient_norm", "momentum_norm"),
    },
    defaults={"optimizer": "adamw"},  # (AdaptiveRL, section 4: momentum is beta1 of AdamW)
    usual_scopes=dict.fromkeys(("lr", "momentum", "exploration", "weight_noise"), "run"),
    warmup_steps=20,
)
make_env, make_vector_env = factories(SPEC)
