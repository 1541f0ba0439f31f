"""Optimizers as data: a name, and one update rule per kind of parameter."""

from __future__ import annotations

from collections.abc import Mapping

from hpenv.checks import as_python
from hpenv.optim.adamw import SGD, AdamW
from hpenv.optim.muon import Muon, NanochatMuon
from hpenv.optim.parameter_free import DAdaptAdamW, Prodigy
from hpenv.optim.rules import Rule
from hpenv.optim.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD

_NANOCHAT_ADAMW = AdamW(beta1=0.8, beta2=0.95, eps=1e-10)
_KINDS = ("embedding", "unembedding", "scalar", "matrix")


def _hybrid(tables: Rule, matrices: Rule) -> dict[str, Rule]:
    return {kind: matrices if kind == "matrix" else tables for kind in _KINDS}


def _single(rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(_KINDS, rule)


#: Name -> rule of each kind of parameter (`lm.architecture.parameter_kind`).
OPTIMIZERS: dict[str, Mapping[str, Rule]] = {
    "adamw": _single(AdamW()),
    "sgd": _single(SGD()),
    "muon": _single(Muon()),
    "adamw_muon": _hybrid(_NANOCHAT_ADAMW, Muon()),
    "adamw_muon_nanochat": _hybrid(_NANOCHAT_ADAMW, NanochatMuon()),
    "sgd_schedule_free": _single(ScheduleFreeSGD()),
    "adamw_schedule_free": _single(ScheduleFreeAdamW()),
    "schedule_free_sgd_muon": _hybrid(ScheduleFreeSGD(), Muon()),
    "schedule_free_adamw_muon": _hybrid(ScheduleFreeAdamW(), Muon()),
    "prodigy": _single(Prodigy()),
    "dadapt_adamw": _single(DAdaptAdamW()),
    "prodigy_muon": _hybrid(Prodigy(), Muon()),
    "dadapt_adamw_muon": _hybrid(DAdaptAdamW(), Muon()),
}


def optimizer_rules(name: str) -> Mapping[str, Rule]:
    """Returns the rules of an optimizer.

    Raises:
        ValueError: for a name that is not in OPTIMIZERS.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}; expected one of {sorted(OPTIMIZERS)}")
    return OPTIMIZERS[name]


def rule_description(rule: Rule) -> str:
    """Returns a rule as text: its class and all its hyperparameters.

    A snapshot must agree with this text.
    """
    parameters = ", ".join(f"{name}={as_python(value)!r}" for name, value in vars(rule).items())
    return f"{type(rule).__qualname__}({parameters})"
