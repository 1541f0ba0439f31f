"""Arms of the projection experiment: their changes of GRPO, and the values that the panel holds.

The main arm is the paper's (b): the mean difference of the pairs' gradients, projected out of one
side at full strength, with the gradient's length restored. Other arms change one thing of it, or
one more of an arm that does. A true projection is two-sided and of the update, and its controls
also change the direction. Routed arms do not restore the length. The arms named `svd` have four
axes instead of one and a noise floor, and have controls with the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
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
#: Loopholes that a weak detector knows.
WEAK = ("run_tests", "sentinel")

VANILLA, MAIN, PLAIN, RANDOM = "vanilla", "projection", "plain", "random"
TWO_SIDED, DRIFT = "two_sided", "drift"
#: The direction is removed from the update that AdamW makes, not from the gradient: AdamW lets a
#: fraction of a projected direction back in.
TRUE, RANDOM_TRUE = "update_two_sided", "update_random_two_sided"
#: The direction is of programs that use the training's loopholes: the effect of projection along a
#: direction that is right.
LABELLED, LABELLED_TRUE = "all_modes", "all_modes_true"
#: A program that uses a loophole is also longer. Three controls: programs with harmless lines
#: appended against the same without, programs that use loopholes against the same with harmless
#: lines, and programs that use them under another name, which has no effect.
APPENDED, EXPLOITS, MISNAMED = "appended", "exploits", "misnamed"
#: The arm of Rebound that projection is measured against: the form and weight that its paper found
#: best.
MAIN_REBOUND = "rebound_multiplicative_2"

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
    """One way to train."""

    name: str  # of the job
    label: str  # in tables and figures
    group: str  # key of GROUPS
    grpo: Mapping[str, Any] = field(default_factory=dict)  # its changes of GRPOConfig
    #: Channel -> value during the whole run, in the channel's unit.
    values: Mapping[str, float] = field(default_factory=dict)
    unknown_modes: tuple[str, ...] = ()  # loopholes that the direction was made without
    #: Whether the trained coefficients are also evaluated without their component along the
    #: direction.
    erases: bool = False
    length: int = 1  # of its runs, in those of the other arms
    is_first: bool = False  # whether it has as many seeds as the arms that a claim rests on

    @property
    def positions(self) -> dict[str, float]:
        """Channel -> position of its cell."""
        return {name: position_of(name, value) for name, value in self.values.items()}


def position_of(channel: str, value: float) -> float:
    """Returns the position at which a one-sided, linear channel has a value other than neutral.

    Raises:
        ValueError: for a channel of another kind, or a value outside its bounds.
    """
    found = CHANNELS[channel]
    low, high = found.bounds
    if not found.one_sided or found.warp != "linear" or found.neutral != low:
        raise ValueError(f"channel must rise evenly from its neutral, as in PANEL; got {channel}")
    if not low < value <= high:
        raise ValueError(f"{channel} must be above {low} and at most {high}; got {value}")
    return DEAD_ZONE + (1.0 - DEAD_ZONE) * (value - low) / (high - low)


_STRENGTH = {"projection_strength": 1.0}
_FULL = _STRENGTH | {"magnitude_preservation": 1.0}
_TRUE = {"target": "update", "rule": "two_sided"}
_SVD = {"direction_method": "svd", "num_axes": 4, "noise_floor": 0.25}
_ALL: dict[str, Any] = {"known_modes": TRAINING_MODES}
_FORMS = ("additive", "multiplicative")


def _main(name: str, label: str, group: str, **grpo: Any) -> Arm:
    """Returns the main arm with some changes."""
    return Arm(name, label, group, grpo, _FULL)


def _rebound(form: str, alpha: float) -> Arm:
    label = f"Rebound, {form}, alpha {alpha:g}"
    values = {"rebound_weight": alpha}
    return Arm(f"rebound_{form}_{alpha:g}", label, "paper", {"rebound": form}, values)


def _detector(name: str, label: str, known: tuple[str, ...]) -> Arm:
    """Returns an arm with the direction of labelled programs of some loopholes."""
    arm = _main(name, label, "detector", direction="labelled", known_modes=known)
    unknown = tuple(mode for mode in TRAINING_MODES if mode not in known)
    return replace(arm, unknown_modes=unknown)


def _leave_out(mode: str) -> Arm:
    known = tuple(other for other in TRAINING_MODES if other != mode)
    return _detector(f"without_{mode}", f"labelled programs of all modes but {mode}", known)


def _with_true(arm: Arm) -> tuple[Arm, Arm]:
    """Returns an arm, and the same as a true projection."""
    label = f"{arm.label}, the update, two-sided"
    return arm, replace(arm, name=f"{arm.name}_true", label=label, grpo=_TRUE | dict(arm.grpo))


def _longer(arm: Arm) -> Arm:
    """Returns an arm with runs of twice the length, to see if suppressed hacks come later."""
    label = f"{arm.label}, twice as long"
    name = f"{arm.name}_long"
    return replace(arm, name=name, label=label, group="longer", length=2, is_first=False)


def _again(arm: Arm) -> Arm:
    """Returns an arm once more, to see if its results repeat."""
    label = f"{arm.label}, once more"
    name = f"{arm.name}_again"
    return replace(arm, name=name, label=label, group="again", erases=False, is_first=False)


_WANTED: tuple[Arm, ...] = (
    Arm(VANILLA, "vanilla (a)", "paper", erases=True),
    _main(MAIN, "one-sided, length kept (b)", "paper"),
    _main(RANDOM, "random direction", "controls", direction="random"),
    _main(TWO_SIDED, "two-sided", "controls", rule="two_sided"),
    _main(DRIFT, "drift: two-sided and a push of -0.4 sd", "controls", rule="drift"),
    _main(TRUE, "the update, two-sided", "controls", **_TRUE),
    *_with_true(_detector(LABELLED, "labelled programs of all modes", TRAINING_MODES)),
    Arm(PLAIN, "one-sided (c)", "paper", {}, _STRENGTH),
    *(_rebound(form, 2.0) for form in _FORMS),
    _main(RANDOM_TRUE, "the update, random, two-sided", "controls", **_TRUE, direction="random"),
    *_with_true(_detector("weak", f"labelled programs of {' and '.join(WEAK)}", WEAK)),
    _rebound("additive", 0.5),
    _main("svd", "4 axes", "axes", **_SVD),
    _main("svd_random", "4 random axes", "axes", **_SVD, direction="random"),
    _main("svd_clean", "4 axes, clean against clean", "axes", **_SVD, direction="clean"),
    _main("shuffled", "shuffled labels", "controls", direction="shuffled"),
    _main("clean", "clean against clean", "controls", direction="clean"),
    _main("hack_half", "the pairs' hacks alone", "controls", direction="hack_half"),
    _main("clean_half", "the pairs' clean programs alone", "controls", direction="clean_half"),
    # The length is not restored: the kept and the routed part then add up to the gradient.
    Arm("route", "routed", "routing", {"route": True}, _STRENGTH),
    Arm(
        *("route_random", "routed, random direction", "routing"),
        {"route": True, "direction": "random"},
        _STRENGTH,
    ),
    *(_leave_out(mode) for mode in TRAINING_MODES),
    Arm(
        *("refresh_rarely", f"refreshed at about every {REFRESH_INTERVAL}th update", "axes"),
        values=_FULL | {"direction_refresh": 1.0 / REFRESH_INTERVAL},
    ),
    _main("update", "projects the update, not the gradient", "controls", target="update"),
    # Arms that are already above keep their places.
    *(_rebound(form, alpha) for alpha, form in product(ALPHAS, _FORMS)),
    Arm(
        *("refresh_always", "refreshed at every update", "axes"),
        values=_FULL | {"direction_refresh": 1.0},
    ),
    _main(
        *("random_two_sided", "random direction, two-sided", "controls"),
        direction="random",
        rule="two_sided",
    ),
    _main("reverse", "reversed (2c)", "controls", rule="reverse"),
    *_with_true(
        _main(APPENDED, "harmless lines appended", "detector", direction="harmless", **_ALL)
    ),
    *_with_true(
        _main(
            *(EXPLOITS, "labelled against harmless lines", "detector"),
            direction="labelled_vs_harmless",
            **_ALL,
        )
    ),
    *_with_true(
        _main(
            *(MISNAMED, "labelled under other names", "detector"),
            direction="labelled_renamed",
            **_ALL,
        )
    ),
)
#: Arms that claims rest on, with more seeds.
FIRST = (
    *(VANILLA, MAIN, PLAIN, RANDOM, TWO_SIDED, DRIFT, LABELLED, LABELLED_TRUE),
    *(APPENDED, f"{APPENDED}_true", MAIN_REBOUND),
)
_NAMED = {arm.name: replace(arm, is_first=arm.name in FIRST) for arm in _WANTED}
#: The most wanted first.
ARMS: tuple[Arm, ...] = (
    *(_NAMED[name] for name in FIRST),
    *(arm for arm in _NAMED.values() if not arm.is_first),
    *(_longer(_NAMED[name]) for name in (VANILLA, MAIN)),
    *(_again(_NAMED[name]) for name in (VANILLA, MAIN)),
    *(_longer(_NAMED[name]) for name in (LABELLED_TRUE, LABELLED, RANDOM)),
)

#: Arms that the demo has.
DEMO_ARMS = (VANILLA, MAIN, RANDOM, TWO_SIDED, DRIFT, "rebound_additive_2")
