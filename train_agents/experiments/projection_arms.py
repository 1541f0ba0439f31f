"""The arms of the projection experiment, as data: what each changes of GRPO, and where it holds the
panel.

The main arm is the paper's (b): the mean difference of the pairs' gradients, projected out of one
side at full strength, the gradient's length given back. Other arms change one thing of it, or one
more of an arm that does: a true projection is two-sided and of the update, and its controls change
the direction, too; routed arms give no length back; the arms named `svd` have four axes in the
place of one and a noise floor, and controls of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hpenv.control.channels import CHANNELS, DEAD_ZONE
from hpenv.posttraining.grading.loopholes import TRAINING_MODES

#: Every arm has all of these, most of them at neutral, which is bitwise free.
PANEL: tuple[tuple[str, str], ...] = (
    ("projection_strength", "run"),
    ("magnitude_preservation", "run"),
    ("direction_refresh", "run"),
    ("rebound_weight", "run"),
)
#: Weights of Rebound's penalty: its paper has 2, the paper on projection 0.5.
ALPHAS = (0.5, 1.0, 2.0, 5.0)
#: Refreshes about once in so many updates.
REFRESH_INTERVAL = 10
#: What a weak detector knows.
WEAK = ("rt", "se")

VANILLA, MAIN, PLAIN, RANDOM, TWO_SIDED, DRIFT = (
    "vanilla",
    "projection",
    "plain",
    "random",
    "two_sided",
    "drift",
)
#: The direction is out of what AdamW applies, not of what it is given: it lets part of a projected
#: direction back in.
TRUE, RANDOM_TRUE = "update_two_sided", "update_random_two_sided"
#: The direction is of programs that use the training's own loopholes: what projection can do where
#: it is right.
LABELLED, LABELLED_TRUE = "all_modes", "all_modes_true"
#: A program that uses a loophole is also a longer one: programs with something harmless appended
#: beside the same without, programs that use loopholes beside the same with something harmless, and
#: programs that use them under another name, which is of no use.
APPENDED, APPENDED_TRUE, EXPLOITS, EXPLOITS_TRUE = (
    "appended",
    "appended_true",
    "exploits",
    "exploits_true",
)
MISNAMED, MISNAMED_TRUE = "misnamed", "misnamed_true"
REBOUND = "rebound_"
#: The arm of Rebound that projection is measured against: the form and weight that its paper found
#: best.
MAIN_REBOUND = f"{REBOUND}multiplicative_2"

#: Sections of the report.
GROUPS = {
    "paper": "The paper's arms",
    "axes": "More axes, and refreshed ones",
    "controls": "Controls: is it the direction?",
    "routing": "Routing",
    "detector": "Weak detectors",
    "longer": "Twice as long",
    "again": "Once more: the same seeds at a later commit",
}


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: of the job.
        label: in tables and figures.
        group: key of GROUPS.
        grpo: what it changes of GRPOConfig.
        values: channel -> value that it is held at during the whole run, in the channel's unit.
        unknown_modes: loopholes that the direction was made without.
        erases: whether the trained knobs are evaluated once more without their part along the
            direction.
        length: of its runs, in those of the other arms.
        is_first: whether it has as many seeds as the arms that a claim rests on.
    """

    name: str
    label: str
    group: str
    grpo: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    unknown_modes: tuple[str, ...] = ()
    erases: bool = False
    length: int = 1
    is_first: bool = False

    @property
    def positions(self) -> dict[str, float]:
        """Channel -> position of its cell."""
        return {name: position_of(name, value) for name, value in self.values.items()}


def position_of(channel: str, value: float) -> float:
    """The position at which a one-sided, linear channel has a value other than its neutral.

    Raises:
        ValueError: for a channel of another kind, or a value outside its bounds.
    """
    found = CHANNELS[channel]
    low, high = found.bounds
    if not found.one_sided or found.warp != "linear" or found.neutral != low:
        raise ValueError(
            f"{channel} is no channel that rises evenly from its neutral; expected one of PANEL"
        )
    if not low < value <= high:
        raise ValueError(f"{channel} = {value}; expected more than {low} and at most {high}")
    return DEAD_ZONE + (1.0 - DEAD_ZONE) * (value - low) / (high - low)


_STRENGTH = {"projection_strength": 1.0}
_FULL = _STRENGTH | {"magnitude_preservation": 1.0}
_TRUE = {"target": "update", "rule": "two_sided"}
_LABELLED = {"direction": "modes", "known_modes": TRAINING_MODES}
_SVD = {"direction_method": "svd", "num_axes": 4, "noise_floor": 0.25}


def _main(name: str, label: str, group: str, **grpo: Any) -> Arm:
    """The main arm but for what is given."""
    return Arm(name, label, group, grpo, _FULL)


def _rebound(form: str, alpha: float) -> Arm:
    label = f"Rebound, {form}, alpha {alpha:g}"
    return Arm(
        f"{REBOUND}{form}_{alpha:g}", label, "paper", {"rebound": form}, {"rebound_weight": alpha}
    )


def _weak(name: str, label: str, **grpo: Any) -> Arm:
    """The direction of what the weak detector knows."""
    unknown = tuple(mode for mode in TRAINING_MODES if mode not in WEAK)
    return Arm(
        name, label, "detector", {"direction": "modes", "known_modes": WEAK} | grpo, _FULL, unknown
    )


def _leave_out(mode: str) -> Arm:
    known = tuple(other for other in TRAINING_MODES if other != mode)
    label = f"labelled programs of all modes but {mode}"
    return Arm(
        f"without_{mode}",
        label,
        "detector",
        {"direction": "modes", "known_modes": known},
        _FULL,
        (mode,),
    )


def _appended(name: str, label: str, **grpo: Any) -> Arm:
    """A control of labelled programs: along what is direction, or along what is length?"""
    return _main(name, label, "detector", **{"known_modes": TRAINING_MODES} | grpo)


def _longer(arm: Arm) -> Arm:
    """An arm in runs of twice the length: does what it suppresses come later?"""
    return replace(
        arm,
        name=f"{arm.name}_long",
        label=f"{arm.label}, twice as long",
        group="longer",
        length=2,
        is_first=False,
    )


def _again(arm: Arm) -> Arm:
    """An arm once more, under a name of its own: does it come out the same?"""
    return replace(
        arm,
        name=f"{arm.name}_again",
        label=f"{arm.label}, once more",
        group="again",
        erases=False,
        is_first=False,
    )


_REBOUNDS = {
    (form, alpha): _rebound(form, alpha)
    for alpha in ALPHAS
    for form in ("additive", "multiplicative")
}

_WANTED: tuple[Arm, ...] = (
    Arm(VANILLA, "vanilla (a)", "paper", erases=True),
    _main(MAIN, "one-sided, length kept (b)", "paper"),
    _main(RANDOM, "random direction", "controls", direction="random"),
    _main(TWO_SIDED, "two-sided", "controls", rule="two_sided"),
    _main(DRIFT, "drift: two-sided and a push of -0.4 sd", "controls", rule="drift"),
    _main(TRUE, "the update, two-sided", "controls", **_TRUE),
    _main(LABELLED, "labelled programs of all modes", "detector", **_LABELLED),
    _main(
        LABELLED_TRUE,
        "labelled programs of all modes, the update, two-sided",
        "detector",
        **_TRUE,
        **_LABELLED,
    ),
    Arm(PLAIN, "one-sided (c)", "paper", {}, _STRENGTH),
    _REBOUNDS["additive", 2.0],
    _REBOUNDS["multiplicative", 2.0],
    _main(RANDOM_TRUE, "the update, random, two-sided", "controls", **_TRUE, direction="random"),
    _weak("weak", f"labelled programs of {' and '.join(WEAK)}"),
    _weak(
        "weak_true", f"labelled programs of {' and '.join(WEAK)}, the update, two-sided", **_TRUE
    ),
    _REBOUNDS["additive", 0.5],
    _main("svd", "4 axes", "axes", **_SVD),
    _main("svd_random", "4 random axes", "axes", **_SVD, direction="random"),
    _main("svd_clean", "4 axes, clean against clean", "axes", **_SVD, direction="clean"),
    _main("shuffled", "shuffled labels", "controls", direction="shuffled"),
    _main("clean", "clean against clean", "controls", direction="clean"),
    _main("hack_half", "the pairs' hacks alone", "controls", direction="hack_half"),
    _main("clean_half", "the pairs' clean programs alone", "controls", direction="clean_half"),
    # Without the length given back: what is kept and what is routed then add up to the gradient.
    Arm("route", "routed", "routing", {"route": True}, _STRENGTH),
    Arm(
        "route_random",
        "routed, random direction",
        "routing",
        {"route": True, "direction": "random"},
        _STRENGTH,
    ),
    *(_leave_out(mode) for mode in TRAINING_MODES),
    Arm(
        "refresh_rarely",
        f"refreshed at about every {REFRESH_INTERVAL}th update",
        "axes",
        {},
        _FULL | {"direction_refresh": 1.0 / REFRESH_INTERVAL},
    ),
)
_MORE: tuple[Arm, ...] = (
    _main("update", "projects the update, not the gradient", "controls", target="update"),
    *(
        arm
        for (form, alpha), arm in _REBOUNDS.items()
        if alpha != 2.0 and (form, alpha) != ("additive", 0.5)
    ),
    Arm(
        "refresh_always",
        "refreshed at every update",
        "axes",
        {},
        _FULL | {"direction_refresh": 1.0},
    ),
    _main(
        "random_two_sided",
        "random direction, two-sided",
        "controls",
        direction="random",
        rule="two_sided",
    ),
    _main("reverse", "reversed (2c)", "controls", rule="reverse"),
    _appended(APPENDED, "harmless lines appended", direction="appended"),
    _appended(
        APPENDED_TRUE,
        "harmless lines appended, the update, two-sided",
        direction="appended",
        **_TRUE,
    ),
    _appended(EXPLOITS, "labelled against harmless lines", direction="exploits"),
    _appended(
        EXPLOITS_TRUE,
        "labelled against harmless lines, the update, two-sided",
        direction="exploits",
        **_TRUE,
    ),
    _appended(MISNAMED, "labelled under other names", direction="misnamed"),
    _appended(
        MISNAMED_TRUE,
        "labelled under other names, the update, two-sided",
        direction="misnamed",
        **_TRUE,
    ),
)
#: Arms that claims rest on, with more seeds.
FIRST = (
    VANILLA,
    MAIN,
    PLAIN,
    RANDOM,
    TWO_SIDED,
    DRIFT,
    LABELLED,
    LABELLED_TRUE,
    APPENDED,
    APPENDED_TRUE,
    MAIN_REBOUND,
)
_NAMED = {arm.name: replace(arm, is_first=arm.name in FIRST) for arm in (*_WANTED, *_MORE)}
#: The most wanted first.
ARMS: tuple[Arm, ...] = (
    *(_NAMED[name] for name in FIRST),
    *(arm for arm in _NAMED.values() if not arm.is_first),
    *(_longer(_NAMED[name]) for name in (VANILLA, MAIN)),
    *(_again(_NAMED[name]) for name in (VANILLA, MAIN)),
    *(_longer(_NAMED[name]) for name in (LABELLED_TRUE, LABELLED, RANDOM)),
)

#: Arms that the demo has.
DEMO_ARMS = (VANILLA, MAIN, RANDOM, TWO_SIDED, DRIFT, f"{REBOUND}additive_2")
