"""Environment ids as data: a plant, an episode's length, tables of channels and observations.

Every id accepts the fields of its plant's configuration and those of `Episode`. The base schedules
are given in any form of `hpenv.optim.schedule_forms`: `schedule` becomes the plant's `lr_schedule`,
and `weight_decay_schedule` stays under its name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from gymnasium.vector import AutoresetMode

from hpenv.checks import check_count, check_interval, set_python_fields, suggestion
from hpenv.control.channel import SCOPES
from hpenv.control.channels import CHANNELS, channels_of
from hpenv.control.moves import MaxMoves, check_mapping
from hpenv.env import TrainLoopVectorEnv
from hpenv.envs.single import TrainLoopEnv
from hpenv.isolation import with_torch_defaults
from hpenv.optim.schedule_forms import schedules_of
from hpenv.optim.schedules import Schedule
from hpenv.render import with_render_modes
from hpenv.telemetry.estimators import estimation_of
from hpenv.telemetry.features import FEATURES
from hpenv.telemetry.reading import readable
from hpenv.telemetry.rewards import REWARD_TERMS, check_weights

Channels = tuple[tuple[str, str], ...]


class UnknownArgumentError(TypeError, ValueError):
    """An id got a keyword argument that it does not have.

    Python raises TypeError for an unknown keyword, with the words "unexpected keyword argument".
    Some clients try a keyword and catch that error: TorchRL's `GymEnv` begins with `frameskip`.
    hpenv raises ValueError for mistakes of a user. This error is both.
    """


@dataclass(frozen=True)
class Episode:
    """Arguments that every id has, next to those of its plant's configuration."""

    num_steps: int  # of an episode [steps]
    interval: int  # steps per decision [steps]
    # name of a channel set, a list of names or (name, scope) pairs, or a mapping name -> scope
    channels: str | Sequence[str | tuple[str, str]] | Mapping[str, str]
    # name of an observation, or a list of keys of hpenv.telemetry.features.FEATURES
    observation: str | Sequence[str]
    reward: Mapping[str, float]  # key of hpenv.telemetry.rewards.REWARD_TERMS -> weight
    # of the learning rate: a key of hpenv.optim.schedules.SCHEDULES, a mapping, a function, or
    # group -> one of these
    schedule: str | Schedule | Mapping[str, Any] = "none"
    num_registers: int = 0  # accumulators that the controller writes and observes
    register_leak: float = 0.9  # fraction of a register that a decision keeps [1]
    seed_mode: str = "independent"  # or `grouped`: the same seed for all rows
    mapping: str = "position"  # or `move`: an action changes the position, and 0 holds it
    # channel -> largest changes of its position per decision, down and up, if actions are moves
    max_moves: MaxMoves = field(default_factory=dict)
    # of trends and plateaus: a key of hpenv.telemetry.estimators.ESTIMATIONS, or fields of
    # Estimation
    estimators: str | Mapping[str, Any] = "stepwise"
    # True puts the held-out score of a finished run into its last info, as `held_out`
    evaluate_at_end: bool = False

    def __post_init__(self) -> None:
        """Checks the lengths and the reward.

        Raises:
            ValueError: naming the argument, the accepted values and the given one.
        """
        set_python_fields(self)
        check_count("num_steps", self.num_steps)
        check_interval(self.interval, self.num_steps)
        check_mapping(self.mapping, self.max_moves)
        estimation_of(self.estimators)
        if not (isinstance(self.reward, Mapping) and self.reward):
            raise ValueError(
                f"reward must be a mapping of terms to weights, as {{'loss_change': 1.0}}, "
                f"with some of {sorted(REWARD_TERMS)}; got {self.reward!r}"
            )


@dataclass(frozen=True)
class Settings:
    """Checked arguments of one environment.

    Attributes:
        episode: arguments that every id has.
        config: configuration of the plant.
        channels: (name, scope) pairs.
        features: observed features.
    """

    episode: Episode
    config: Any
    channels: Channels
    features: tuple[str, ...]


@dataclass(frozen=True)
class TrainLoopSpec:
    """One environment id.

    Attributes:
        id: name in Gymnasium's registry.
        plant: class of the runs, with its configuration as `Config`.
        episode: default arguments.
        channel_sets: name -> (channel, scope) pairs.
        observations: name -> features.
        defaults: defaults of the plant's configuration that differ from its own.
        usual_scopes: channel -> its scope when its name alone is given. A channel that is not
            listed gets its finest scope.
        warmup_steps: warmup of the schedule `cosine` if it is given by name alone, at most half of
            the run [steps].
    """

    id: str
    plant: Any
    episode: Episode
    channel_sets: Mapping[str, Channels]
    observations: Mapping[str, tuple[str, ...]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    usual_scopes: Mapping[str, str] = field(default_factory=dict)
    warmup_steps: int = 0

    @property
    def arguments(self) -> list[str]:
        """Names of all arguments, sorted."""
        config = {entry.name for entry in fields(self.plant.Config)} - {"lr_schedule"}
        return sorted(config | {entry.name for entry in fields(Episode)})

    def settings(self, **given: Any) -> Settings:
        """Returns the checked arguments.

        Raises:
            UnknownArgumentError: naming the unknown arguments and the accepted ones.
            ValueError: naming the argument, the accepted values and the given one.
        """
        accepted = self.arguments
        unknown = sorted(set(given) - set(accepted))
        if unknown:
            plural, names = "s" if len(unknown) > 1 else "", ", ".join(map(repr, unknown))
            raise UnknownArgumentError(
                f"{self.id} got {'' if plural else 'an '}unexpected keyword argument{plural} "
                f"{names}; expected some of {accepted}{suggestion(unknown[0], accepted)}"
            )

        own = {entry.name for entry in fields(Episode)}
        episode = replace(self.episode, **{k: v for k, v in given.items() if k in own})
        readable_names = readable(FEATURES, self.plant.measurements)
        features = features_of(episode.observation, self.observations, readable_names)
        channels = channels_with_scopes(
            episode.channels, self.channel_sets, self.usual_scopes, self.plant.kind
        )
        check_weights(episode.reward, self.plant.measurements)

        values = dict(self.defaults) | {k: v for k, v in given.items() if k not in own}
        values["lr_schedule"] = self._schedule("schedule", episode.schedule, episode)
        if "weight_decay_schedule" in values:
            form = values["weight_decay_schedule"]
            values["weight_decay_schedule"] = self._schedule("weight_decay_schedule", form, episode)
        return Settings(episode, self.plant.Config(**values), channels, features)

    def _schedule(self, argument: str, form: Any, episode: Episode) -> Any:
        if form == "cosine" and self.warmup_steps:
            warmup = min(self.warmup_steps, episode.num_steps // 2)
            form = {"name": "cosine", "warmup_steps": warmup}
        return schedules_of(argument, form, episode.num_steps)


def factories(
    spec: TrainLoopSpec,
) -> tuple[Callable[..., TrainLoopEnv], Callable[..., TrainLoopVectorEnv]]:
    """Returns the entry points of an id, for `gym.make` and for `gym.make_vec`."""

    @with_render_modes
    @with_torch_defaults
    def make_vector_env(
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = "NEXT_STEP",
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        **arguments: Any,
    ) -> TrainLoopVectorEnv:
        """Builds a population: `gym.make_vec(id, num_envs=N)`."""
        settings = spec.settings(**arguments)
        episode = settings.episode
        return TrainLoopVectorEnv(
            spec.plant(settings.config, num_envs, settings.channels),
            features=settings.features,
            reward=episode.reward,
            interval=episode.interval,
            num_steps=episode.num_steps,
            num_registers=episode.num_registers,
            register_leak=episode.register_leak,
            seed_mode=episode.seed_mode,
            mapping=episode.mapping,
            max_moves=episode.max_moves,
            estimators=episode.estimators,
            autoreset_mode=autoreset_mode,
            render_mode=render_mode,
            evaluate_at_end=episode.evaluate_at_end,
            max_episode_steps=max_episode_steps,
        )

    @with_render_modes
    @with_torch_defaults
    def make_env(*, render_mode: str | None = None, **arguments: Any) -> TrainLoopEnv:
        """Builds one run: `gym.make(id)`."""
        spec.settings(**arguments)  # an argument of make_vec alone is refused
        return TrainLoopEnv(
            make_vector_env(1, autoreset_mode="DISABLED", render_mode=render_mode, **arguments)
        )

    return make_env, make_vector_env


def check_key(name: str, value: object, table: Collection[str], otherwise: str = "") -> None:
    """Checks that a value is a key of a table.

    Args:
        name: name of the argument, for the message.
        value: the given value.
        table: accepted keys.
        otherwise: description of other accepted values, for the message.

    Raises:
        ValueError: naming the argument, the given value and the accepted keys.
    """
    if not (isinstance(value, str) and value in table):
        accepted = f"{sorted(table)}, or {otherwise}" if otherwise else f"{sorted(table)}"
        raise ValueError(
            f"unknown {name} {value!r}; expected one of {accepted}{suggestion(value, table)}"
        )


def features_of(
    observation: str | Sequence[str],
    observations: Mapping[str, tuple[str, ...]],
    accepted: Collection[str],
) -> tuple[str, ...]:
    """Returns the features of an observation.

    Args:
        observation: key of `observations`, or a list of accepted features.
        observations: name of an observation -> its features.
        accepted: accepted features.

    Raises:
        ValueError: for an unknown name of an observation or a feature, or a feature that is named
            twice.
    """
    if isinstance(observation, str) or not isinstance(observation, Sequence):
        check_key("observation", observation, observations, "a list of feature names")
        return observations[observation]

    for name in observation:
        check_key("feature", name, accepted)
    if len(set(observation)) < len(observation):
        raise ValueError(f"observation must name each feature once; got {list(observation)}")
    return tuple(observation)


def channels_with_scopes(
    channels: str | Sequence[str | tuple[str, str]] | Mapping[str, str],
    channel_sets: Mapping[str, Channels],
    usual_scopes: Mapping[str, str],
    plant: str,
) -> Channels:
    """Returns the channels with their scopes.

    Args:
        channels: key of `channel_sets`, a list of names or (name, scope) pairs, or name -> scope.
        channel_sets: name of a channel set -> its (name, scope) pairs.
        usual_scopes: scopes of channels that are given by name alone. Other channels then get
            their finest scope.
        plant: kind of plant.

    Raises:
        ValueError: for an unknown channel set or channel, or something that is neither a name nor
            a pair.
    """
    if isinstance(channels, str) or not isinstance(channels, Sequence | Mapping):
        check_key("channels", channels, channel_sets, "a list of channel names")
        return channel_sets[channels]

    entries = channels.items() if isinstance(channels, Mapping) else channels
    pairs: list[tuple[str, str]] = []
    for given in entries:
        if isinstance(given, str):
            if given in SCOPES:
                example = (pairs[-1][0] if pairs else "lr", given)
                raise ValueError(
                    f"channel must be a name, not a scope; got {given!r}; "
                    f"give a scope in a pair, as [{example}]"
                )
            if given not in CHANNELS:
                check_key("channel", given, channels_of(plant))
            pairs.append((given, usual_scopes.get(given, CHANNELS[given].scopes[-1])))
        elif (
            isinstance(given, Sequence)
            and len(given) == 2
            and all(isinstance(part, str) for part in given)
        ):
            pairs.append((given[0], given[1]))
        else:
            raise ValueError(
                f"channel must be a name or a (name, scope) pair, with a name of "
                f"{sorted(channels_of(plant))}; got {given!r}"
            )

    return tuple(pairs)
