"""The order of the rooms: every module imports only what lies below its room.

Imports are read from the source with `ast`, wherever they stand (in functions, under
`TYPE_CHECKING`, as the text given to `import_module`), so nothing is executed and no optional
dependency has to be installed.

A room is a folder, or a module that stands alone. A new room needs a line in `DIRECTLY_BELOW`: its
name, and the rooms directly below it. A module may import those and all that lies below them. The
modules of one room may import each other, but not in a circle.
"""

from pathlib import Path

import pytest

from tests.import_graph import FILES, PACKAGES, Import, find_cycle, imports_in_file
from tests.paths import ROOT

DIRECTLY_BELOW: dict[str, tuple[str, ...]] = {
    "hpenv.arrays": (),
    "hpenv.checks": (),
    "hpenv.isolation": (),
    "hpenv.plot": (),
    "hpenv.lm": ("hpenv.checks", "hpenv.isolation"),
    "hpenv.optim": ("hpenv.arrays", "hpenv.checks"),
    "hpenv.optim.fused": ("hpenv.optim",),
    "hpenv.optim.fused.kernels": ("hpenv.optim.fused",),
    "hpenv.optim.fused.launches": ("hpenv.optim.fused.kernels",),
    "hpenv.control": ("hpenv.arrays", "hpenv.checks"),
    "hpenv.plant": ("hpenv.control", "hpenv.checks", "hpenv.isolation"),
    "hpenv.telemetry": ("hpenv.plant", "hpenv.render"),
    "hpenv.pretraining": ("hpenv.lm", "hpenv.optim", "hpenv.plant"),
    "hpenv.posttraining.sandbox": (),
    "hpenv.posttraining.problems": ("hpenv.posttraining.sandbox",),
    "hpenv.posttraining.grading": ("hpenv.posttraining.problems",),
    "hpenv.posttraining.students": ("hpenv.lm",),
    "hpenv.posttraining.projection": ("hpenv.lm",),
    "hpenv.posttraining.loss": (),
    "hpenv.posttraining.contrastive": (
        "hpenv.posttraining.grading",
        "hpenv.posttraining.projection",
    ),
    "hpenv.posttraining.config": (
        "hpenv.optim",
        "hpenv.posttraining.contrastive",
        "hpenv.posttraining.loss",
        "hpenv.posttraining.students",
    ),
    "hpenv.posttraining.splits": ("hpenv.plant", "hpenv.posttraining.config"),
    "hpenv.posttraining.measurements": ("hpenv.plant", "hpenv.posttraining.grading"),
    "hpenv.posttraining.coefficients": ("hpenv.optim",),
    "hpenv.posttraining.contrast": ("hpenv.posttraining.config",),
    "hpenv.posttraining.intervention": ("hpenv.plant", "hpenv.posttraining.contrast"),
    "hpenv.posttraining.evaluation": ("hpenv.posttraining.splits",),
    "hpenv.posttraining.plant": (
        "hpenv.posttraining.coefficients",
        "hpenv.posttraining.evaluation",
        "hpenv.posttraining.intervention",
        "hpenv.posttraining.measurements",
    ),
    "hpenv.posttraining": ("hpenv.posttraining.plant",),
    "hpenv.policies": ("hpenv.plant",),
    "hpenv.deploy": ("hpenv.policies", "hpenv.telemetry"),
    "hpenv.traces": ("hpenv.deploy",),
    "hpenv.infos": ("hpenv.plant",),
    "hpenv.render": ("hpenv.plot",),
    "hpenv.env": ("hpenv.telemetry", "hpenv.infos"),
    "hpenv.envs": ("hpenv.env", "hpenv.pretraining", "hpenv.posttraining"),
    "hpenv.branching": ("hpenv.envs",),
    "hpenv.benchmark": ("hpenv", "hpenv.envs", "hpenv.policies"),
    "hpenv.integrations": ("hpenv.env", "hpenv.policies", "hpenv.posttraining"),
    "hpenv": (),
    # Of hpenv, an agent sees the policies it trains and nothing else.
    "agents.base": ("hpenv.policies",),
    "agents.returns": (),
    "agents.losses": (),
    "agents.sidecar_config": (),
    "agents.cell_networks": ("hpenv.policies", "agents.sidecar_config"),
    "agents.credits": ("agents.returns", "agents.sidecar_config"),
    "agents.replay": (),
    "agents.estimates": ("agents.base", "agents.credits"),
    "agents.reinforce": (
        "agents.base",
        "agents.cell_networks",
        "agents.credits",
        "agents.estimates",
        "agents.losses",
        "agents.replay",
    ),
    "agents.thompson": ("agents.base",),
    # All other modules of agents: an agent each. They do not import each other.
    "agents": ("agents.reinforce", "agents.thompson"),
}

# train_agents joins everything; its own order is held by the absence of cycles alone.
MAY_IMPORT = {
    "hpenv": {"hpenv"},
    "agents": {"hpenv", "agents"},
    "train_agents": set(PACKAGES),
    "baselines": {"hpenv", "baselines"},
}
REGISTRATION = {"__future__", "gymnasium"}
NAMES_THAT_SAY_NOTHING = {"util", "utils", "common", "helper", "helpers", "misc"}


def room_of(module: str) -> str:
    """Returns the longest name in the table that begins a module's name, or an empty text."""
    parts = module.split(".")
    names = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    own = next((name for name in names if name in DIRECTLY_BELOW), "")
    return own if own in (module, "agents") or own not in PACKAGES else ""


def below(room: str) -> set[str]:
    """The rooms that a room may import: those directly below it, and all below them.

    Of a room of another package that room alone, not what it is built on.
    """
    found: set[str] = set()
    for name in DIRECTLY_BELOW[room]:
        found.add(name)
        if name.split(".")[0] == room.split(".")[0]:
            found |= below(name)
    return found


def violations(module: str, imports: list[Import]) -> list[str]:
    """Returns the faults of a module's place and its imports, one line each."""
    package, room = module.split(".")[0], room_of(module)
    allowed = None  # rooms of hpenv and agents that it may import; None is no restriction
    if package in ("hpenv", "agents"):
        if not room:
            return [
                f"{module} is unknown: add a room that holds it to DIRECTLY_BELOW in "
                "tests/test_layers.py, with the rooms directly below it"
            ]
        allowed = {room} | below(room)
    wrong = []
    for target, line, _ in imports:
        other = target.split(".")[0]
        if other in ("tests", "speed"):
            wrong.append(f"line {line}: {module} imports {target}, which nobody imports")
        elif other in PACKAGES and other not in MAY_IMPORT[package]:
            wrong.append(
                f"line {line}: {module} imports {target}, but {package} never imports {other}"
            )
        elif module != "agents" and room == room_of(target) == "agents":
            wrong.append(f"line {line}: {module} imports {target}; no agent imports another")
        elif other in PACKAGES and allowed is not None and room_of(target) not in allowed:
            wrong.append(f"line {line}: {module} imports {target}; below it lie {sorted(allowed)}")
    return wrong


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_only_what_lies_below_its_room(module):
    wrong = violations(module, imports_in_file(module))
    assert not wrong, "\n".join(wrong)


def test_the_root_of_hpenv_imports_nothing_but_registration():
    path = ROOT / "hpenv" / "__init__.py"
    wrong = [
        i.target for i in imports_in_file("hpenv") if i.target.split(".")[0] not in REGISTRATION
    ]
    assert not wrong, f"{path} may import gymnasium and nothing else, and imports {wrong}"


def test_no_module_imports_itself_through_others():
    graph = {
        module: {i.target for i in imports_in_file(module) if i.target in FILES} for module in FILES
    }
    assert (cycle := find_cycle(graph)) is None, " -> ".join(cycle)


def test_tests_stand_in_folders_that_the_source_has():
    files = (ROOT / "tests").rglob("*.py")
    folders = {file.parent.relative_to(ROOT / "tests") for file in files} - {Path()}
    assert folders
    assert not [str(folder) for folder in folders if not any((ROOT / folder).glob("*.py"))]


@pytest.mark.parametrize("module", FILES)
def test_no_module_has_a_name_that_says_nothing(module):
    assert not NAMES_THAT_SAY_NOTHING & set(module.split("."))


def test_the_table_has_no_unknown_names_and_no_cycle():
    assert {name for names in DIRECTLY_BELOW.values() for name in names} <= set(DIRECTLY_BELOW)
    assert find_cycle({room: set(names) for room, names in DIRECTLY_BELOW.items()}) is None


def test_hpenv_has_at_most_seven_floors():
    """A room, here a folder, is one floor above the highest room that it imports."""

    def folder(room):
        package, *rest = room.split(".")
        return ".".join([package, *rest[:1]]) if package == "hpenv" else package

    def floor(name):
        rooms = [room for room in DIRECTLY_BELOW if folder(room) == name]
        others = {folder(other) for room in rooms for other in DIRECTLY_BELOW[room]} - {name}
        return 1 + max(map(floor, others), default=0)

    assert max(floor(folder(room)) for room in DIRECTLY_BELOW) <= 7


@pytest.mark.parametrize(
    ("module", "target", "is_allowed"),
    [
        ("hpenv.control.panel", "hpenv.control.channels", True),
        ("hpenv.control.panel", "hpenv.plant.protocol", False),
        ("hpenv.posttraining.students.embedded", "hpenv.posttraining.grading.grader", False),
        ("hpenv.posttraining.grading.grader", "hpenv.posttraining.sandbox.jobs", True),
        ("hpenv.lm.model", "hpenv.optim.rules", False),
        ("hpenv.optim.fused.twin", "hpenv.optim.muon", True),
        ("hpenv.optim.fused.twin", "hpenv.optim.fused.kernels", False),
        ("hpenv.optim.rules", "hpenv.optim.fused.twin", False),
        ("hpenv.pretraining.plant", "hpenv.lm.model", True),
        ("hpenv.env", "hpenv.control.channels", True),
        ("hpenv.env", "hpenv.pretraining.plant", False),
        ("hpenv.env", "hpenv.envs.jel", False),
        ("hpenv.envs.jel", "hpenv.pretraining.plant", True),
        ("hpenv.policies.neutral", "hpenv.policies.gaussian_mlp", True),
        ("hpenv.policies.neutral", "hpenv.env", False),
        ("hpenv.integrations.sb3", "hpenv.env", True),
        ("hpenv.deploy.attachment", "hpenv.policies.store", True),
        ("hpenv.deploy.attachment", "hpenv.env", False),
        ("hpenv.env", "agents.base", False),
        ("hpenv.env", "hpenv", False),
        ("agents.jel", "hpenv.policies.gaussian_mlp", True),
        ("agents.jel", "hpenv.plant.snapshots", False),
        ("agents.ppo", "hpenv.integrations.sb3", False),
        ("agents.ppo", "hpenv", False),
        ("agents", "agents.jel", True),
        ("agents", "hpenv.env", False),
        ("agents.returns", "hpenv.policies", False),
        ("agents.ppo", "agents.jel", False),
        ("agents.jel", "train_agents.rollout", False),
        ("baselines.run", "hpenv.benchmark.results", True),
        ("train_agents.train", "hpenv", True),
        ("train_agents.train", "speed.run", False),
    ],
)
def test_the_picture_allows_and_forbids_what_it_shows(module, target, is_allowed):
    assert (not violations(module, [Import(target, 1, False)])) == is_allowed


@pytest.mark.parametrize("module", ["hpenv.gadget", "hpenv.gadget.inner"])
def test_an_unknown_module_is_told_where_to_go(module):
    (message,) = violations(module, [])
    assert message.startswith(f"{module} is unknown: add a room that holds it to DIRECTLY_BELOW")
