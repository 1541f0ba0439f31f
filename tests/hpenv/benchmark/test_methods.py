"""Methods: names of controllers, and hashes of their code or weights."""

import sys

import pytest

from hpenv.benchmark.methods import method_of
from hpenv.policies import Neutral, save_policy

CONTROLLER = """
import numpy as np

import beside
from hpenv.policies import ControllerSpec


class Mine:
    spec = ControllerSpec(channels=[("lr", "run")], observation=["progress"])

    def act(self, observations):
        return np.full((len(observations), 1), beside.LEVEL, np.float32)
"""


@pytest.fixture
def digest(tmp_path, monkeypatch):
    """Writes a controller and a module beside it, and returns the digest of the method."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(controller, level):
        (tmp_path / "mine.py").write_text(controller)
        (tmp_path / "beside.py").write_text(f"LEVEL = {level}\n")
        sys.modules.pop("beside", None)
        return method_of(str(tmp_path / "mine.py") + ":Mine").digest

    yield write
    sys.modules.pop("beside", None)
    sys.modules.pop("mine", None)


def test_digest_covers_the_file_and_the_modules_beside_it(digest):
    first = digest(CONTROLLER, 0.5)
    assert digest(CONTROLLER, 0.5) == first
    assert digest(CONTROLLER, 0.75) != first
    assert digest(CONTROLLER + "# changed\n", 0.5) != first


def test_digest_of_a_training_run_is_that_of_its_policy(tmp_path):
    run = tmp_path / "ppo-0.5"
    save_policy(Neutral(2), run / "policy")
    whole = method_of(str(run))
    assert whole.name == method_of(str(run / "policy")).name == "ppo-0.5"
    (run / "progress.jsonl").write_text("{}")
    assert method_of(str(run)).digest == whole.digest == method_of(str(run / "policy")).digest


@pytest.mark.parametrize("name", ["off", "reference", "../up", ""])
def test_names_that_are_taken_or_leave_the_folder_are_refused(name, tmp_path):
    save_policy(Neutral(2), tmp_path / "off")
    with pytest.raises(ValueError, match="name must be letters"):
        method_of(str(tmp_path / "off"), name)
