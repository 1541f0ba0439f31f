"""Every client of the table drives every id."""

import importlib.util

import pytest

from tests import tiny_student
from tests.hpenv.envs.every_id import IDS, MARKS, PROJECTION
from tests.hpenv.envs.small_arguments import SMALL
from tests.hpenv.integrations.clients import CLIENTS
from tests.paths import ROOT


def cases():
    found = []
    for name, client in CLIENTS.items():
        for id in IDS:
            slow = () if id in client.by_default else (pytest.mark.slow,)
            marks = [*slow, *([MARKS[id]] if MARKS[id] else [])]
            found.append(pytest.param(name, id, marks=marks, id=f"{name}-{id}"))
    return found


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory):
    """A random student in a folder, so that worker processes can read it."""
    folder = tmp_path_factory.mktemp("students") / "tiny"
    tiny_student.student(3, seed=5, end=6.0).save(folder, {})
    return str(folder)


@pytest.mark.parametrize(("name", "id"), cases())
def test_the_client_drives_the_id(name, id, student_folder, tmp_path):
    client = CLIENTS[name]
    for module in client.needs:
        if importlib.util.find_spec(module.split(".")[0]) is None:
            pytest.skip(f"{module} is not installed")
    arguments = SMALL[id] | ({"student": student_folder} if id == PROJECTION else {})
    with tiny_student.few_pairs():
        client.drive(id, arguments, tmp_path)


def test_the_page_has_a_row_for_every_client_and_no_empty_cell():
    lines = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8").splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    header, _, *rows = table
    assert {f"TrainLoop-{name}-v0" for name in header[2:]} == set(IDS)
    assert [row[0] for row in rows] == list(CLIENTS)
    assert all(len(row) == len(header) and all(row) for row in rows)
