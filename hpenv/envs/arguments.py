"""Argument checks shared by the environment factories."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

from hpenv.channels import CHANNELS, SCOPES, channels_of
from hpenv.configuration import PretrainingConfig
from hpenv.rewards import REWARD_TERMS
from hpenv.schedule_forms import schedules_of
from hpenv.values import check_count, is_count

Channels = tuple[tuple[str, str], ...]


class UnknownArgumentError(TypeError, ValueError):
    """An id got a keyword argument that it does not have.

    Python raises TypeError for an unknown keyword, with the words "unexpected keyword argument".
    Some clients try a keyword and catch that error: TorchRL's `GymEnv` begins with `frameskip`.
    hpenv raises ValueError for mistakes of a user. This error is both.
    """


def check_arguments(arguments: Mapping[str, Any], config: type[Any], id: str) -> dict[str, Any]:
    """Returns the arguments after checking that all are fields of the id's configuration.

    Raises:
        UnknownArgumentError: naming the unknown arguments and the accepted ones.
    """
    accepted = {f.name for f in fields(config)}
    unknown = sorted(set(arguments) - accepted)
    if unknown:
        plural, names = "s" if len(unknown) > 1 else "", ", ".join(map(repr, unknown))
        raise UnknownArgumentError(
            f"{id} got {'' if plural else 'an '}unexpected keyword argument{plural} {names}; "
            f"expected some of {sorted(accepted)}"
        )

    return dict(arguments)


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
        raise ValueError(f"unknown {name} {value!r}; expected one of {accepted}")


def features(
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


def channel_pairs(
    channels: str | Sequence[str | tuple[str, str]] | Mapping[str, str],
    surfaces: Mapping[str, Channels],
    usual_scopes: Mapping[str, str],
    plant: str,
) -> Channels:
    """Returns the channels with their scopes.

    Args:
        channels: key of `surfaces`, a list of names or (name, scope) pairs, or name -> scope.
        surfaces: name of a channel set -> its (name, scope) pairs.
        usual_scopes: scopes of channels that are given by name alone. Other channels then get
            their finest scope.
        plant: kind of plant.

    Raises:
        ValueError: for an unknown channel set or channel, or something that is neither a name nor
            a pair.
    """
    if isinstance(channels, str) or not isinstance(channels, Sequence | Mapping):
        check_key("channels", channels, surfaces, "a list of channel names")
        return surfaces[channels]

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


def check_reward(reward: object) -> None:
    """Checks that the reward is a mapping of terms to weights with at least one term.

    Raises:
        ValueError: with an example.
    """
    if not (isinstance(reward, Mapping) and reward):
        raise ValueError(
            f"reward must be a mapping of terms to weights, as {{'loss_change': 1.0}}, "
            f"with some of {sorted(REWARD_TERMS)}; got {reward!r}"
        )


def check_episode(num_steps: int, interval: int) -> None:
    """Checks that an episode has at least one decision.

    Raises:
        ValueError: naming the argument and the given value.
    """
    check_count("num_steps", num_steps)
    if not (is_count(interval) and interval <= num_steps):
        raise ValueError(
            f"interval must be a whole number of steps per decision, from 1 to "
            f"num_steps={num_steps}; got {interval!r}"
        )


def plant_config(config: Any) -> PretrainingConfig:
    """Returns the plant's configuration: the shared fields of an id's, and the base schedules."""
    shared = {f.name for f in fields(config)} & {f.name for f in fields(PretrainingConfig)} - {
        "weight_decay_schedule"
    }
    schedules: dict[str, Any] = {
        f"{kind}_schedule": schedules_of(argument, getattr(config, argument), config.num_steps)
        for kind, argument in (("lr", "schedule"), ("weight_decay", "weight_decay_schedule"))
    }
    return PretrainingConfig(**{name: getattr(config, name) for name in shared}, **schedules)
