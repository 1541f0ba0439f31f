"""Packages that are imported stand in pyproject.toml, by their role."""

import re
import sys
import tomllib

import pytest

from tests.import_graph import FILES, imports_in_file
from tests.paths import ROOT
from tests.test_layers import room_of

IMPORT_NAMES = {
    "pillow": "PIL",
    "stable-baselines3": "stable_baselines3",
}  # where it is not the name on the package index


def _requirements(requirements: list[str]) -> set[str]:
    names = [re.match(r"[\w.-]+", requirement).group() for requirement in requirements]
    return {IMPORT_NAMES.get(name, name) for name in names}


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = _requirements(PROJECT["dependencies"])
# What may be missing, and may therefore be imported inside a function. torch.utils.tensorboard
# needs tensorboard.
OPTIONAL = {"torch.utils.tensorboard"}.union(
    *(
        _requirements(extra)
        for role, extra in PROJECT["optional-dependencies"].items()
        if role != "dev"
    )
)


#: Rooms of modules that exist for an optional dependency, and that no other room imports at load.
FOR_EXTRAS = ("hpenv.integrations", "hpenv.optim.fused.kernels")


def is_optional(target: str) -> bool:
    return any(target == name or target.startswith(name + ".") for name in OPTIONAL)


@pytest.mark.parametrize("module", FILES)
def test_only_optional_dependencies_are_imported_inside_functions(module):
    wrong = [
        f"line {i.line}: {i.target}"
        for i in imports_in_file(module)
        if i.in_function and not is_optional(i.target)
    ]
    assert not wrong, (
        f"{module} imports inside a function, where only {sorted(OPTIONAL)} may stand:\n"
        + "\n".join(wrong)
    )


@pytest.mark.parametrize(
    "module", [m for m in FILES if m.startswith("hpenv") and room_of(m) not in FOR_EXTRAS]
)
def test_hpenv_loads_with_its_core_dependencies_alone(module):
    allowed = CORE | sys.stdlib_module_names | {"hpenv"}
    at_load = [i for i in imports_in_file(module) if not i.in_function]
    wrong = [
        f"line {i.line}: {i.target}"
        for i in at_load
        if i.target.split(".")[0] not in allowed or is_optional(i.target)
    ]
    assert not wrong, (
        f"{module} cannot be imported without extras; import these where they are used:\n"
        + "\n".join(wrong)
    )
