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
from typing import Any

from hpenv.control.channels import CHANNELS
from hpenv.posttraining.grading.loopholes import TRAINING_MODES

#: Every arm has all of these, most of them at neutral, which is bitwise free.
PANEL: tuple[tuple[str, str], ...] = (
    ("projection_strength", "run"),
    ("magnitude_preservation", "run"),
    ("direction_refresh", "run"),
    ("rebound_weight", "run"),
)
VANILLA, MAIN, PLAIN, RANDOM = "vanilla", "projection", "plain", "random"
#: The arm of Rebound that projection is measured against: the form and weight that its paper found
#: best.
MAIN_REBOUND = "rebound_multiplicative_2"
BEST_CONSTANT, CONTROLLER = "constant", "controller"

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
    """One way to train, or a further measurement of another arm."""

    name: str  # of the job
    label: str  # in tables and figures
    group: str  # key of GROUPS, or empty
    grpo: Mapping[str, Any] = field(default_factory=dict)  # its changes of GRPOConfig
    #: Channel -> value during the whole run, in the channel's unit.
    values: Mapping[str, float] = field(default_factory=dict)
    #: True: the coefficients are also evaluated without their component along the direction.
    erases: bool = False
    length: int = 1  # of its runs, in those of the other arms
    is_first: bool = False  # True: it has as many seeds as the arms that a claim rests on

    @property
    def positions(self) -> dict[str, float]:
        """Channel -> position of its cell."""
        return {name: CHANNELS[name].position(value) for name, value in self.values.items()}

    @property
    def unknown_modes(self) -> tuple[str, ...]:
        """Loopholes that a direction of labelled programs was made without."""
        known = self.grpo.get("known_modes", TRAINING_MODES)
        return tuple(mode for mode in TRAINING_MODES if mode not in known)


_STRENGTH = {"projection_strength": 1.0}
_FULL = _STRENGTH | {"magnitude_preservation": 1.0}
#: The direction is removed from the update that AdamW makes, not from the gradient: AdamW lets a
#: fraction of a projected direction back in.
_TRUE = {"target": "update", "rule": "two_sided"}
_SVD = {"direction_method": "svd", "num_axes": 4, "noise_floor": 0.25}


def _main(name: str, label: str, group: str, **grpo: Any) -> Arm:
    """Returns the main arm with some changes."""
    return Arm(name, label, group, grpo, _FULL)


def _rebound(form: str, alpha: float) -> Arm:
    """Returns an arm with Rebound's penalty. Its paper weighs it 2, that on projection 0.5."""
    label = f"Rebound, {form}, alpha {alpha:g}"
    values = {"rebound_weight": alpha}
    return Arm(f"rebound_{form}_{alpha:g}", label, "paper", {"rebound": form}, values)


def _labelled(name: str, programs: str, known: tuple[str, ...], kind: str = "labelled") -> Arm:
    """Returns an arm with a direction of programs that use some loopholes."""
    return _main(name, programs, "detector", direction=kind, known_modes=known)


def _leave_out(mode: str) -> Arm:
    known = tuple(other for other in TRAINING_MODES if other != mode)
    return _labelled(f"without_{mode}", f"labelled programs of all modes but {mode}", known)


def _with_true(arm: Arm) -> tuple[Arm, Arm]:
    """Returns an arm, and the same as a true projection."""
    label = f"{arm.label}, the update, two-sided"
    return arm, replace(arm, name=f"{arm.name}_true", label=label, grpo=_TRUE | dict(arm.grpo))


def _longer(name: str) -> Arm:
    """Returns an arm with runs of twice the length, to see if suppressed hacks come later."""
    arm = _NAMED[name]
    label = f"{arm.label}, twice as long"
    return replace(arm, name=f"{name}_long", label=label, group="longer", length=2, is_first=False)


def _again(name: str) -> Arm:
    """Returns an arm once more, to see if its results repeat."""
    arm = replace(_NAMED[name], erases=False, is_first=False)
    return replace(arm, name=f"{name}_again", label=f"{arm.label}, once more", group="again")


#: Arms that claims rest on. `all_modes` is of programs that use the training's loopholes: the
#: effect of projection along a direction that is right. A program that uses a loophole is also
#: longer. Three controls: programs with harmless lines appended against the same without
#: (`appended`), programs that use loopholes against the same with harmless lines (`exploits`), and
#: programs that use them under another name, which has no effect (`misnamed`).
_FIRST: tuple[Arm, ...] = (
    Arm(VANILLA, "vanilla (a)", "paper", erases=True),
    _main(MAIN, "one-sided, length kept (b)", "paper"),
    Arm(PLAIN, "one-sided (c)", "paper", {}, _STRENGTH),
    _main(RANDOM, "random direction", "controls", direction="random"),
    _main("two_sided", "two-sided", "controls", rule="two_sided"),
    _main("drift", "drift: two-sided and a push of -0.4 sd", "controls", rule="drift"),
    *_with_true(_labelled("all_modes", "labelled programs of all modes", TRAINING_MODES)),
    *_with_true(_labelled("appended", "harmless lines appended", TRAINING_MODES, "harmless")),
    _rebound("multiplicative", 2.0),
)
#: The other arms, the most wanted first.
_MORE: tuple[Arm, ...] = (
    _main("update_two_sided", "the update, two-sided", "controls", **_TRUE),
    _rebound("additive", 2.0),
    _main(
        *("update_random_two_sided", "the update, random, two-sided", "controls"),
        **_TRUE,
        direction="random",
    ),
    *_with_true(
        _labelled("weak", "labelled programs of run_tests and sentinel", ("run_tests", "sentinel"))
    ),
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
        *({"route": True, "direction": "random"}, _STRENGTH),
    ),
    *(_leave_out(mode) for mode in TRAINING_MODES),
    Arm(
        *("refresh_rarely", "refreshed at about every 10th update", "axes"),
        values=_FULL | {"direction_refresh": 0.1},
    ),
    _main("update", "projects the update, not the gradient", "controls", target="update"),
    _rebound("multiplicative", 0.5),
    _rebound("additive", 1.0),
    _rebound("multiplicative", 1.0),
    _rebound("additive", 5.0),
    _rebound("multiplicative", 5.0),
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
        _labelled(
            *("exploits", "labelled against harmless lines"),
            *(TRAINING_MODES, "labelled_vs_harmless"),
        )
    ),
    *_with_true(
        _labelled("misnamed", "labelled under other names", TRAINING_MODES, "labelled_renamed")
    ),
)
_NAMED = {arm.name: arm for arm in (*(replace(arm, is_first=True) for arm in _FIRST), *_MORE)}
ARMS: tuple[Arm, ...] = (
    *_NAMED.values(),
    *(_longer(name) for name in (VANILLA, MAIN)),
    *(_again(name) for name in (VANILLA, MAIN)),
    *(_longer(name) for name in ("all_modes_true", "all_modes", RANDOM)),
)
#: Further measurements of the arms, and of the strengths.
DERIVED: tuple[Arm, ...] = (
    Arm("vanilla_erased", "vanilla, its knobs erased afterwards", "controls"),
    Arm("route_on", "routed, with the quarantine", "routing"),
    Arm("route_random_on", "routed, random direction, with the quarantine", "routing"),
    Arm(BEST_CONSTANT, "best constant strength", "", {}, _STRENGTH),
    Arm(CONTROLLER, "learned strength, controller", ""),
)
#: Arms that the demo has.
DEMO_ARMS = (VANILLA, MAIN, RANDOM, "two_sided", "drift", "rebound_additive_2")
