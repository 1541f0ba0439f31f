"""The lock names every version that an installation needs.

So nothing is resolved on the day of the installation.
"""

import ast
import importlib.metadata
import re
import sys
import tomllib
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
#: Extras that `make setup` installs. The others, which the lock leaves out, say so in a comment.
INSTALLED_EXTRAS = re.search(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
#: Packages of the extras that the lock leaves out.
LEFT_OUT = {
    canonicalize_name(Requirement(text).name)
    for extra, texts in EXTRAS.items()
    if extra not in INSTALLED_EXTRAS
    for text in texts
}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
SYSTEMS = (
    ("linux", "Linux", "x86_64"),
    ("linux", "Linux", "aarch64"),
    ("darwin", "Darwin", "arm64"),
)
OURS = {"agents", "baselines", "docs", "speed", "examples", "hpenv", "tests", "train_agents"}
INSTALLERS = {
    "pip",
    "hpenv",
}  # pip comes with the virtual environment; hpenv is installed from the checkout

#: Clients that the lock leaves out (docs/clients.md). Their tests are skipped without them.
CLIENTS = {"nevergrad", "openenv", "ray", "sb3_contrib", "uvicorn"}


class Pin(NamedTuple):
    """One requirement of a locked file, and how many hashes stand below it."""

    requirement: Requirement
    num_hashes: int


def read_pins(name: str) -> list[Pin]:
    """The requirements of a file in pip's format."""
    lines = [
        line
        for line in (ROOT / name).read_text().splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    pins: list[Pin] = []
    for line in lines:
        text = line.rstrip("\\ ")
        if text.lstrip().startswith("--hash=sha256:"):
            assert len(text.strip()) == len("--hash=sha256:") + 64, text
            pins[-1] = pins[-1]._replace(num_hashes=pins[-1].num_hashes + 1)
        else:
            pins.append(Pin(Requirement(text), 0))
    return pins


PINS = read_pins("constraints.txt") + read_pins("requirements.lock")


def environment(python: str, system: tuple[str, str, str]) -> dict[str, str]:
    """Returns the environment that markers are evaluated in."""
    platform, name, machine = system
    return {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "sys_platform": platform,
        "platform_system": name,
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "extra": "",
    }


def versions(where: dict[str, str]) -> dict[str, str]:
    """Name -> version of what is installed there."""
    chosen: dict[str, str] = {}
    for requirement, _ in PINS:
        if requirement.marker is None or requirement.marker.evaluate(where):
            name = canonicalize_name(requirement.name)
            assert name not in chosen, f"{name} is pinned twice"
            chosen[name] = next(iter(requirement.specifier)).version
    return chosen


def test_every_pin_is_one_version_with_hashes():
    for requirement, num_hashes in PINS:
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], requirement
        assert num_hashes > 0, requirement


@pytest.mark.parametrize("system", SYSTEMS, ids="-".join)
@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_satisfies_the_project_on_every_python(python, system):
    where = environment(python, system)
    locked = versions(where)
    locked_extras = [texts for extra, texts in EXTRAS.items() if extra in INSTALLED_EXTRAS]
    for text in chain(PROJECT["dependencies"], *locked_extras):
        requirement = Requirement(text)
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), text
    assert not [name for name in locked if name.startswith(("nvidia-", "cuda-", "triton"))], (
        "a CUDA build"
    )


@pytest.mark.skipif(
    Path(sys.prefix) != ROOT / ".venv", reason="not the environment that `make setup` makes"
)
def test_what_is_installed_is_the_lock():
    """Every distribution at its locked version.

    Each of its requirements is among the locked ones.
    """
    locked = versions({})
    for distribution in importlib.metadata.distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        if name in INSTALLERS:
            continue
        assert distribution.version.split("+")[0] == locked.get(name), name
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted = canonicalize_name(requirement.name)
                assert wanted in locked, f"{wanted}, which {name} requires"
                assert requirement.specifier.contains(locked[wanted], prereleases=True), (
                    f"{name}: {text}"
                )


def imported_names(path: Path) -> set[str]:
    """Top-level names of everything that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_the_compromised_releases_of_lightning_are_excluded():
    (requirement,) = map(Requirement, EXTRAS["lightning"])
    assert not {"2.6.2", "2.6.3"} & set(requirement.specifier.filter(["2.6.2", "2.6.3", "2.6.6"]))
    assert requirement.specifier.contains("2.6.6")


def test_everything_that_is_imported_is_locked_or_of_an_extra_that_the_lock_leaves_out():
    locked, providers = versions({}), importlib.metadata.packages_distributions()
    files = [path for name in sorted(OURS) for path in (ROOT / name).rglob("*.py")]
    assert len(files) > 100
    for path in files:
        for name in imported_names(path) - OURS - CLIENTS - set(sys.stdlib_module_names):
            if canonicalize_name(name) in LEFT_OUT:
                continue
            sources = {canonicalize_name(source) for source in providers.get(name, ())}
            assert sources & locked.keys(), f"{path.relative_to(ROOT)} imports {name}"
