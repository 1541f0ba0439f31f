"""The generated pages of the documentation have every entry of the tables."""

import os
import re
from pathlib import Path

import gymnasium as gym
import pytest

import hpenv
from docs import manuals, markdown, pages, pictures, reference, tables
from hpenv.benchmark.instances import SUITES
from hpenv.control.channels import CHANNELS
from hpenv.optim.optimizers import OPTIMIZERS
from hpenv.policies.store import POLICIES
from hpenv.telemetry.features import FEATURES
from hpenv.telemetry.rewards import REWARD_TERMS
from tests.paths import ROOT
from train_agents.train import AGENTS

gym.register_envs(hpenv)
PAGES = tables.tables() | manuals.manuals() | reference.reference() | pages.pages()
HAND = sorted(path for path in (ROOT / "docs").glob("*.md"))
HAND += sorted((ROOT / "docs/tutorials").glob("*.md"))


def first_cells(page):
    """Returns the first cells of all rows of a page's tables."""
    return {
        line.split("|")[1].strip().strip("`")
        for line in PAGES[page].splitlines()
        if line.startswith("| ")
    }


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("channels.md", CHANNELS),
        ("features.md", FEATURES),
        ("rewards.md", REWARD_TERMS),
        ("optimizers.md", OPTIMIZERS),
        ("agents.md", [*AGENTS, *POLICIES]),
        ("suites.md", [path.stem for path in SUITES.glob("*.json")]),
    ],
)
def test_every_entry_of_a_table_has_a_row(page, names):
    assert set(names) <= first_cells(page)


def test_every_id_has_a_page_with_its_manual_and_its_defaults():
    ids = {id for id in gym.registry if id.startswith("TrainLoop-")}
    found = manuals.modules()
    assert {module.ID for module in found.values()} == ids
    for name, module in found.items():
        page = PAGES[f"environments/{name}.md"]
        sections = re.findall(r"^(\w[\w ]*):$", module.__doc__, re.M)
        assert [f"## {section}" in page for section in sections] == [True] * len(sections)
        assert set(module.SPEC.arguments) <= first_cells(f"environments/{name}.md")
    assert set(pictures.EPISODES) < set(found)


def test_every_picture_of_an_episode_is_on_the_page_of_its_id():
    names = [path.stem for path in (ROOT / "docs/pictures").glob("*.png")]
    assert set(names) <= set(pictures.EPISODES)
    for name in [*names, "jel"]:
        (image,) = re.findall(r"!\[.*\]\((.*)\)", PAGES[f"environments/{name}.md"])
        assert (ROOT / "docs/generated/environments" / image).resolve().is_file()


def test_a_row_of_a_table_is_one_line_in_a_page():
    text = "| a  | b     |\n|----|-------|\n| x  | one   |\n|    | two   |\n| y  | three |\n"
    lines = markdown.join_rows(text).splitlines()
    assert [re.sub(" +", " ", line) for line in lines[2:]] == ["| x | one two |", "| y | three |"]


def test_a_docstring_becomes_text_and_lists():
    def function():
        """Returns a.

        More, with `code`.

        Args:
            first: one
                and two.
            **others: three.

        Returns:
            Both.
        """

    found = markdown.docstring_of(function)
    assert "- `first`: one\n  and two.\n- `**others`: three." in found
    assert found.index("More") < found.index("**Args**") < found.index("**Returns**\n\nBoth.")


def test_the_options_of_a_program_are_the_fields_of_its_configuration():
    page = PAGES["programs.md"]
    assert "| `--num-updates` | `50` | number of updates of the agent (JEL, table 2) |" in page
    assert "| `--lr-decades` | `0.0` | with a suite, the base learning rate of an update" in page


def test_signatures_have_no_types():
    found = reference.signature(gym.make)
    assert found.startswith("(id, max_episode_steps=None, ") and "->" not in found


@pytest.mark.parametrize("path", HAND, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(path):
    """Links to generated pages, to files of the repository, and to headings of the same site."""
    generated = {(ROOT / "docs/generated" / name).resolve() for name in PAGES}
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        place = (path.parent / target.partition("#")[0]).resolve()
        assert place in generated or place.exists(), target


def test_links_to_files_without_a_page_become_text():
    text = "See [a page](docs/deploy.md#rails), [examples/](examples/) and [`x`](hpenv/env.py)."
    found = markdown.relocate(text, ROOT, ROOT / "docs/generated")
    assert found == "See [a page](../deploy.md#rails), `examples/` and `x`."
    code = "```python\n[a](b.md)\n```"
    assert markdown.relocate(code, ROOT, Path(os.sep)) == code


def test_pages_are_written_and_old_ones_removed(tmp_path):
    markdown.write_pages(tmp_path, {"a/b.md": "x"})
    before = (tmp_path / "a/b.md").stat().st_mtime_ns
    (tmp_path / "old.md").write_text("y")
    markdown.write_pages(tmp_path, {"a/b.md": "x"})
    assert not (tmp_path / "old.md").exists()
    assert (tmp_path / "a/b.md").stat().st_mtime_ns == before
